"""Text vectors of new videos and comments to the rows that each part needs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lsvcr.serving.bundle import Bundle
from lsvcr.serving.draft import Rows
from lsvcr.serving.encoder import Tower, TowerRows
from lsvcr.serving.errors import BadRequest


class Towers:
    """The towers of all parts of a bundle.

    Args:
        bundle: an opened bundle.
        threads: of one run.

    Attributes:
        width: w of a text vector.

    Raises:
        BundleError: a graph cannot be read.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self.width = int(bundle.manifest["text_width"])
        self._has_text = all(part.tower is not None for part in bundle.parts.values())
        self._towers = {
            task: Tower(part.tower, threads) for task, part in bundle.parts.items() if part.tower is not None
        }

    def refusal(self, width: int) -> str | None:
        """Why text vectors of this width are of no use here; None where they are."""
        if not self._has_text:
            return "the model of this bundle looks at no text, so it has no place for new videos and comments"
        if width != self.width:
            return f"a text vector of this bundle has {self.width} numbers, not {width}"
        return None

    def vector(self, given: Any) -> np.ndarray:
        """A text vector as it came in a request, (w,) float32.

        Raises:
            BadRequest: no list of w finite numbers.
        """
        try:
            numbers = np.asarray(given)
        except ValueError:  # lists within the list, of different lengths
            numbers = np.zeros((0, 0))
        if numbers.ndim != 1 or (numbers.dtype.kind not in "fiu" and len(numbers)):
            raise BadRequest("vector is a list of numbers")
        refusal = self.refusal(len(numbers))
        if refusal:
            raise BadRequest(refusal)
        with np.errstate(over="ignore"):
            vector = numbers.astype(np.float32)
        if not np.isfinite(vector).all():
            raise BadRequest("vector has a number that is not finite in single precision (NaN or infinite)")
        return vector

    def rows(self, vectors: np.ndarray) -> list[Rows]:
        """What each of the text vectors (n, w) float32 becomes in every part.

        Raises:
            BadRequest: numbers so large that the products overflow.
        """
        of_task = {task: tower.rows(vectors) for task, tower in self._towers.items()}
        with np.errstate(over="ignore", invalid="ignore"):
            # The length is what an item is divided by, so it has to be finite too.
            lengths = [np.linalg.norm(field, axis=1) for made in of_task.values() for field in made]
        if not all(np.isfinite(length).all() for length in lengths):
            raise BadRequest("vector has numbers so large that the model overflows")
        return [
            {task: TowerRows(*(field[place] for field in made)) for task, made in of_task.items()}
            for place in range(len(vectors))
        ]


def stacked(vectors: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Text vectors one below the other, (n, w) float32; n may be 0."""
    return np.array(vectors, dtype=np.float32).reshape(len(vectors), width)
