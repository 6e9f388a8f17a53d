"""What an earlier export has already: vectors of rows whose id and text are the same today.

Row numbers change when a dataset is prepared again, so rows are found by hashes of id and text, which every export
leaves beside its vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lsvcr.data.vectors import described, read_manifest
from lsvcr.schema import EMBEDDINGS_MANIFEST_FILE
from lsvcr.training.embed_shared import CHUNK
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import load_npy, sha256_file, sha256_text

IDENTITY = (
    *("kind", "llm_layers", "weights", "parent", "max_text_length", "dtype"),
    *("item_prompt", "item_fields", "pooling"),
)
"""Fields of `embeddings.json` that tell whether two exports give a text the same vector. Versions of packages are
none of them: they change a vector by rounding. The second row stands in descriptions of item vectors alone."""


@dataclass(frozen=True)
class Earlier:
    """An export that fits."""

    folder: Path
    """Holds its files of vectors. They are mapped where they are read, a slice at a time."""
    keys: Mapping[str, np.ndarray]
    """By name of the keys' file, its keys, see `Plan.keys`."""
    stamp: str
    """A hash of all that it holds."""


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What tells two exports apart, as `field: value there, value here`."""
    return [
        f"{field} {_short(there.get(field))} there, {_short(here.get(field))} here"
        for field in IDENTITY
        if there.get(field) != here.get(field)
    ]


def open_earlier(folder: Path, files: Mapping[str, str], about: Mapping[str, Any]) -> Earlier:
    """Open an earlier export after checking all of it.

    Args:
        folder: holds it.
        files: by name of each file of vectors that is needed, the name of its keys' file.
        about: where today's vectors come from.

    Raises:
        UserError: a file is missing or damaged, or comes from another checkpoint or other settings.
    """
    keys, stamp = {}, ""
    for name, keys_name in files.items():
        entry = described(folder / name)
        if entry is None or not (folder / name).is_file():
            raise UserError(
                f"--only_new: {folder} has no {name} that `lsvcr embed` wrote; leave --only_new out, or name the "
                "folder of the earlier export with --earlier_dir"
            )
        other = differences(entry, about)
        if other:
            raise UserError(
                f"--only_new: {folder / name} was made by another checkpoint or with other settings "
                f"({'; '.join(other)}): leave --only_new out"
            )
        # All finite when it was written, so its hash says all; reading, unlike mapping, holds nothing.
        if sha256_file(folder / name) != entry["sha256"]:
            raise UserError(
                f"--only_new: {folder / name} is not the file that {EMBEDDINGS_MANIFEST_FILE} beside it describes: "
                "leave --only_new out this once"
            )
        keys[keys_name] = _open_keys(folder, keys_name, entry)
        stamp += entry["sha256"]
    return Earlier(folder, keys, sha256_text(stamp))


def earlier_rows(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """For each of today's rows, the row of the earlier export with the same id and the same text.

    Holds 12 bytes an earlier row (20 while it sorts) and 4 a row of today.

    Args:
        old: (3, m) uint64, the earlier export's keys, see `Plan.keys`.
        new: (3, n) uint64, today's.

    Returns:
        (n,) int32, -1 for none.
    """
    found = np.full(new.shape[1], -1, dtype=np.int32)
    if not old.shape[1]:
        return found
    order = np.argsort(old[0], kind="stable").astype(np.int32)
    ordered = old[0][order]
    for start in range(0, new.shape[1], CHUNK):
        part = np.asarray(new[:, start : start + CHUNK])
        place = np.minimum(np.searchsorted(ordered, part[0]), len(ordered) - 1)
        row = order[place]
        same = (ordered[place] == part[0]) & (old[1][row] == part[1]) & (old[2][row] == part[2])
        found[start : start + part.shape[1]] = np.where(same, row, -1)
    return found


def _open_keys(folder: Path, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    path = folder / name
    about = read_manifest(folder).get("keys", {}).get(name)
    if about is None or not path.is_file() or about["data_hash"] != entry["data_hash"]:
        raise UserError(
            f"--only_new: {path}, which tells the texts of the vectors beside it, is missing or belongs to other "
            "data: leave --only_new out this once"
        )
    if sha256_file(path) != about["sha256"]:
        raise UserError(
            f"--only_new: {path} has changed since it was written: leave --only_new out this once"
        )
    return load_npy(path)


def _short(value: Any) -> str:
    return str(value)[:12]
