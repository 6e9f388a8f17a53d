"""Untuned vectors of a dataset, as `lsvcr embed --checkpoint none` would leave them, but drawn."""

import hashlib
import json
from pathlib import Path

import numpy as np

from lsvcr.data.store import Dataset


def write_vectors(folder: Path, dataset: Dataset, width: int, **about: object) -> None:
    """Untuned vectors of a dataset, with or without a description beside them."""
    files = {}
    sizes = {"photo_full_embs.npy": dataset.n_videos + 1, "comment_full_embs.npy": dataset.n_comments + 1}
    for name, rows in sizes.items():
        table = np.random.default_rng(rows).normal(size=(rows, width)).astype(np.float32)
        table[0] = 0
        np.save(folder / name, table)
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        files[name] = {
            "rows": rows,
            "width": width,
            "sha256": digest,
            "data_hash": dataset.data_hash,
            **about,
        }
    if about:
        (folder / "embeddings.json").write_text(json.dumps({"files": files}))
