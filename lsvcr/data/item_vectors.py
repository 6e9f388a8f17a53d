"""Vectors of items that an LLM has made once: found, and refused where they are not what a recommender wants."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lsvcr import schema
from lsvcr.data.store import Dataset
from lsvcr.data.vectors import described, load_embeddings
from lsvcr.utils.errors import UserError

USUAL_POOLING = "mean"
"""Of vectors whose description names none."""


@dataclass(frozen=True)
class ItemVectors:
    """A file of vectors of a dataset's videos.

    Attributes:
        file: absolute.
        sha256: of the file, as its description has it.
        dataset: that it was made for.
    """

    file: Path
    sha256: str
    dataset: Dataset

    @property
    def about(self) -> dict[str, str]:
        """For manifests: where it lies and what it holds."""
        return {"path": str(self.file), "sha256": self.sha256}

    def array(self) -> np.ndarray:
        """(n_videos + 1, h) float, row 0 zeros; mapped copy-on-write, because torch wants memory it may write to.

        Raises:
            UserError: it has other rows, NaN or infinity, or is not what its description tells.
        """
        load_embeddings(self.file, self.file.name, self.dataset.n_videos + 1, self.dataset.data_hash)
        array: np.ndarray = np.load(self.file, mmap_mode="c", allow_pickle=False)
        if array[0].any():
            raise UserError(f"{self.file}, row 0 belongs to padding and must be zeros: make the file again")
        return array


def find_item_vectors(dataset: Dataset, name: str, pooling: str) -> ItemVectors:
    """Find the file and compare its description; its numbers are not read yet.

    Args:
        dataset: the prepared dataset.
        name: of the file, looked up as it stands and then in the dataset; empty = what `lsvcr embed --item_prompt hllm`
            writes into the dataset.
        pooling: that the vectors must have been made by, `mean` or `last`.

    Raises:
        UserError: it is not there, nothing says how it was made, or it was made for another dataset or by another
            pooling; with the command that makes it.
    """
    remedy = f"make them with `{_command(dataset, pooling)}`"
    wanted = name or schema.ITEM_EMBEDDINGS_FILE
    places = [Path(wanted), dataset.root / wanted] if name else [dataset.root / wanted]
    file = next((place.resolve() for place in places if place.is_file()), None)
    if file is None:
        told = " and ".join(dict.fromkeys(str(place.absolute()) for place in places))
        raise UserError(
            f"there are no vectors of items at {told}: put the file back, name another with --item_vectors, or {remedy}"
        )
    entry: dict[str, Any] | None = described(file)
    if entry is None:
        raise UserError(
            f"no {schema.EMBEDDINGS_MANIFEST_FILE} beside {file} tells how it was made, by which pooling and for which "
            f"dataset: {remedy}"
        )
    if entry["data_hash"] != dataset.data_hash:
        raise UserError(
            f"{file} was made for another dataset than {dataset.root}, or this one has changed since "
            f"({entry['data_hash'][:12]} there, {dataset.data_hash[:12]} here): {remedy}"
        )
    made = entry.get("pooling", USUAL_POOLING)
    if made != pooling:
        raise UserError(
            f"the vectors in {file} were made by --pooling {made}, and --pooling {pooling} is wanted: {remedy}, or "
            f"give --pooling {made} to take these"
        )
    return ItemVectors(file, entry["sha256"], dataset)


def _command(dataset: Dataset, pooling: str) -> str:
    return (
        f"lsvcr embed --checkpoint none --item_prompt hllm --pooling {pooling} --model_name_or_path LLM "
        f"--data_path {dataset.root}"
    )
