"""The catalogue's titles: which videos a text names, and how much of what was generated names any."""

import html
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lsvcr.baselines.generations import Generated

_QUOTES = str.maketrans({**dict.fromkeys("‘’‚‛`´′", "'"), **dict.fromkeys("“”„‟″«»", '"')})


def exact(text: str) -> str:
    """A text as it stands, on one line."""
    return " ".join(text.split())


def normalised(text: str) -> str:
    """A text without what tells apart only its spelling: HTML entities, Unicode forms (NFKC), kinds of quotation marks,
    marks around the whole, case, blanks.

    >>> normalised(' "Tom &amp; Jerry’s  CAFÉ" ') == normalised("tom & jerry's cafe\\u0301")
    True
    """
    plain = unicodedata.normalize("NFKC", html.unescape(text)).translate(_QUOTES).casefold()
    return " ".join(unicodedata.normalize("NFKC", plain).split()).strip("\"' ")


class TitleIndex:
    """Titles of videos 1 ... N.

    Args:
        titles: by video index, padding first.

    Attributes:
        titles: the T distinct ones, in the alphabet's order; videos without a title have none.
        title_of: (N,) int64: which of them video i + 1 has; -1 = none.
    """

    def __init__(self, titles: Iterable[str]) -> None:
        every = [exact(title) for title in titles][1:]
        self.titles = sorted({title for title in every if title})
        numbers = {title: number for number, title in enumerate(self.titles)}
        self.title_of = np.array([numbers.get(title, -1) for title in every], dtype=np.int64)
        self._videos: dict[Callable[[str], str], dict[str, np.ndarray]] = {}
        for form in (exact, normalised):
            groups: dict[str, list[int]] = defaultdict(list)
            for video, title in enumerate(every):
                if title and form(title):
                    groups[form(title)].append(video)
            self._videos[form] = {key: np.array(videos) for key, videos in groups.items()}

    def videos(self, text: str, form: Callable[[str], str]) -> np.ndarray:
        """Places in 0 ... N - 1 of the videos that a text names under `exact` or `normalised`; empty for none."""
        return self._videos[form].get(form(text), np.zeros(0, dtype=np.int64))

    def spread(self, values: np.ndarray, nobody: np.ndarray) -> np.ndarray:
        """(B, T) values of titles -> (B, N) of videos; those without a title get their row's `nobody` (B,)."""
        found = values[:, np.maximum(self.title_of, 0)]
        return np.where(self.title_of >= 0, found, nobody[:, None])

    def places(self, texts: Sequence[str], form: Callable[[str], str]) -> np.ndarray:
        """How many places lie before each video in the list that the beams make: (N,) float64, infinity = not listed.

        A beam takes a place for each video it names, and one if it names none or repeats an earlier beam, as in GenRec,
        where the rank is the beam's number. Videos of one title share the places of their beam.
        """
        found = np.full(len(self.title_of), np.inf)
        before = 0
        for text in texts:
            named = self.videos(text, form)
            fresh = named[np.isinf(found[named])]
            found[fresh] = before
            before += max(1, len(fresh))
        return found


@dataclass(frozen=True)
class Validity:
    """What share of the generated texts is of use.

    Attributes:
        rows: of the split that were generated for.
        beams: of all of them.
        valid: beams that are a title as it stands.
        valid_normalised: beams that are a title but for spelling.
        duplicates: beams that repeat, but for spelling, an earlier beam of their row.
        rows_without_title: rows whose best beam is empty: a miss wherever distances rank.
        titles: distinct catalogue titles that were named, but for spelling.
    """

    rows: int
    beams: int
    valid: float
    valid_normalised: float
    duplicates: float
    rows_without_title: int
    titles: int

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return dict(vars(self))


def validity(generated: Generated, index: TitleIndex) -> Validity:
    """Count what was generated for one split."""
    beams = valid = named = repeated = 0
    titles: set[str] = set()
    for texts in generated.texts:
        seen: set[str] = set()
        for text in texts:
            key = normalised(text)
            beams += 1
            valid += len(index.videos(text, exact)) > 0
            if len(index.videos(text, normalised)):
                named += 1
                titles.add(key)
            repeated += key in seen
            seen.add(key)
    empty = sum(not texts or not exact(texts[0]) for texts in generated.texts)
    total = max(beams, 1)
    return Validity(
        len(generated.texts), beams, valid / total, named / total, repeated / total, empty, len(titles)
    )
