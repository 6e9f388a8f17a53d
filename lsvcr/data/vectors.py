"""Text vectors on disk: `photo_embs.npy`, `comment_embs.npy` and what `embeddings.json` says of them.

Row i belongs to index i; row 0 is padding. Files without `embeddings.json` (made by other programs in the
official layout) are accepted too; then only shape and numbers can be checked.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from lsvcr.schema import EMBEDDINGS_MANIFEST_FILE
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import load_npy, read_json

CHUNK_ROWS = 1 << 15
_REMEDY = "run `lsvcr embed` on this dataset again"


def load_embeddings(path: str | Path, name: str, n_rows: int, data_hash: str | None = None) -> np.memmap:
    """Map a file of text vectors after checking all of it.

    Args:
        path: the `.npy` file, or the folder that holds `name`.
        name: file name inside the folder, such as `schema.VIDEO_EMBEDDINGS_FILE`.
        n_rows: rows there must be: the catalogue and row 0.
        data_hash: of the dataset the vectors are for; compared where `embeddings.json` lists the file.

    Returns:
        (n_rows, width) floating point, read-only, memory-mapped.

    Raises:
        UserError: the file is missing or damaged, has other rows, holds NaN or infinity, was made for another
            dataset or another state of it, or is not the one that `embeddings.json` describes.
    """
    file = Path(path) / name if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(f"there are no text vectors at {file}: {_REMEDY}")
    array = load_npy(file)
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] == 0:
        raise UserError(
            f"{file} holds {array.dtype} of shape {array.shape}, not one vector of numbers a row: {_REMEDY}"
        )
    if array.shape[0] != n_rows:
        raise UserError(
            f"{file} has {array.shape[0]} rows, but this dataset needs {n_rows} "
            f"({n_rows - 1} and the padding row 0): {_REMEDY}"
        )
    entry = described(file)
    if entry and data_hash and entry["data_hash"] != data_hash:
        raise UserError(
            f"{file} was made for another dataset, or this one has changed since "
            f"({entry['data_hash'][:12]} there, {data_hash[:12]} here): {_REMEDY}"
        )
    digest = _checked_digest(file, array)
    if entry and entry["sha256"] != digest:
        raise UserError(
            f"{file} is not the file that {EMBEDDINGS_MANIFEST_FILE} beside it describes: {_REMEDY}"
        )
    assert isinstance(array, np.memmap)
    return array


def described(file: Path) -> dict[str, Any] | None:
    """What `embeddings.json` beside `file` says of it; None if it says nothing.

    Raises:
        UserError: the description is broken.
    """
    manifest = read_manifest(file.parent)
    entry = manifest["files"].get(file.name)
    if entry is not None and not {"data_hash", "sha256"} <= entry.keys():
        raise UserError(
            f"{file.parent / EMBEDDINGS_MANIFEST_FILE} does not describe {file.name} fully: {_REMEDY}"
        )
    return entry


def read_manifest(folder: Path) -> dict[str, Any]:
    """`embeddings.json` of a folder; one without entries where there is none.

    Raises:
        UserError: it is broken.
    """
    path = folder / EMBEDDINGS_MANIFEST_FILE
    if not path.is_file():
        return {"files": {}}
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise UserError(f"{path} is no description of text vectors: remove it, or {_REMEDY}")
    return manifest


def first_not_finite(rows: np.ndarray) -> int | None:
    """Number of the first row with NaN or infinity; None if all are finite."""
    bad = ~np.isfinite(rows).all(axis=1)
    return int(np.argmax(bad)) if bad.any() else None


def _checked_digest(file: Path, array: np.ndarray) -> str:
    """SHA-256 of the file, from the one reading in which every number is looked at."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        digest.update(stream.read(array.offset))  # type: ignore[attr-defined]
    for start in range(0, len(array), CHUNK_ROWS):
        chunk = np.ascontiguousarray(array[start : start + CHUNK_ROWS])
        bad = first_not_finite(chunk)
        if bad is not None:
            raise UserError(
                f"{file}, row {start + bad}: NaN or infinity. {_REMEDY.capitalize()} (--bf16 False)"
            )
        digest.update(chunk.reshape(-1).data)
    return digest.hexdigest()
