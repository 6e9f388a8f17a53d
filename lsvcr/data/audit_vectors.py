"""What files of text vectors hold, bad numbers included: `load_embeddings` refuses them, this tells about them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lsvcr import schema
from lsvcr.data.store import Dataset
from lsvcr.data.vectors import CHUNK_ROWS, described
from lsvcr.schema import (
    COMMENT_EMBEDDINGS_FILE,
    COMMENT_FULL_EMBEDDINGS_FILE,
    VIDEO_EMBEDDINGS_FILE,
    VIDEO_FULL_EMBEDDINGS_FILE,
)
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import load_npy, sha256_file

OF_VIDEOS = (VIDEO_EMBEDDINGS_FILE, VIDEO_FULL_EMBEDDINGS_FILE)
OF_COMMENTS = (COMMENT_EMBEDDINGS_FILE, COMMENT_FULL_EMBEDDINGS_FILE)


def audit_vectors(dataset: Dataset, folder: Path) -> list[dict[str, Any]]:
    """Every file of text vectors in `folder`, see `audit_file`."""
    found = []
    for names, file, column in (
        (OF_VIDEOS, schema.VIDEOS_FILE, schema.TITLE),
        (OF_COMMENTS, schema.COMMENTS_FILE, schema.CONTENT),
    ):
        there = [folder / name for name in names if (folder / name).is_file()]
        if there:
            numbers, distinct = _text_numbers(dataset.root / file, column)
            found += [audit_file(path, numbers, distinct, dataset.data_hash) for path in there]
    return found


def audit_file(path: Path, has_text: np.ndarray, distinct_texts: int, data_hash: str) -> dict[str, Any]:
    """Audit one file in two readings, a chunk of rows at a time.

    Args:
        path: the `.npy` file.
        has_text: (rows needed,) bool, False for padding and empty texts, whose vectors are zero.
        distinct_texts: different texts among them; equal texts have equal vectors.
        data_hash: of the dataset.

    Returns:
        `file`, `rows`, `rows_needed`, `width`, `dtype`; `problem` (a sentence, or None) where no more can be said;
        else `zero_rows` (with text, all zeros) and `not_finite_rows` with `first_zero` and `first_not_finite`,
        `rows_that_should_be_zero` (without text, not zero), `distinct_vectors`, `shared_by_different_texts` (share of
        the texts that has no vector of its own), `mean_norm`, `mean_cosine` (of a row to the mean row: near 1 all
        texts look alike), `made_for_this_data` and `as_described` (None without a description beside the file).
    """
    report: dict[str, Any] = {"file": path.name, "folder": str(path.parent), "problem": None}
    try:
        array = load_npy(path)
        entry = described(path)
    except UserError as broken:
        return {**report, "problem": str(broken)}
    report |= {"rows": len(array), "rows_needed": len(has_text), "dtype": str(array.dtype)}
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape != (len(has_text), array.shape[-1]):
        shape = " x ".join(map(str, array.shape))
        return {
            **report,
            "problem": f"it holds {array.dtype} of shape {shape}, not {len(has_text)} vectors of numbers",
        }
    first = _first_reading(path, has_text)
    norm, cosine = _second_reading(path, has_text, first.pop("sum"))
    distinct = first["distinct_vectors"]
    return {
        **report,
        "width": array.shape[1],
        **first,
        "shared_by_different_texts": max(0.0, 1 - distinct / distinct_texts) if distinct_texts else None,
        "mean_norm": norm,
        "mean_cosine": cosine,
        "made_for_this_data": entry["data_hash"] == data_hash if entry else None,
        "as_described": sha256_file(path) == entry["sha256"] if entry else None,
    }


def _first_reading(path: Path, has_text: np.ndarray) -> dict[str, Any]:
    """Zeros, bad numbers, repeats, and the sum of all good rows."""
    zero, bad, stray = ([np.zeros(0, np.int64)] for _ in range(3))
    hashes, total = [], 0.0
    for start, rows in _chunks(path):
        real = has_text[start : start + len(rows)]
        finite = np.isfinite(rows).all(axis=1)
        filled = (rows != 0).any(axis=1)
        zero.append(start + np.flatnonzero(real & ~filled))
        bad.append(start + np.flatnonzero(~finite))
        stray.append(start + np.flatnonzero(~real & filled))
        good = real & finite & filled
        hashes.append(_row_hashes(rows[good]))
        total = total + rows[good].sum(axis=0, dtype=np.float64)
    zeros, bads = np.concatenate(zero), np.concatenate(bad)
    return {
        "zero_rows": len(zeros),
        "first_zero": int(zeros[0]) if len(zeros) else None,
        "not_finite_rows": len(bads),
        "first_not_finite": int(bads[0]) if len(bads) else None,
        "rows_that_should_be_zero": len(np.concatenate(stray)),
        "distinct_vectors": len(np.unique(np.concatenate(hashes))),
        "sum": total,
    }


def _second_reading(path: Path, has_text: np.ndarray, total: np.ndarray) -> tuple[float | None, float | None]:
    """Mean norm of the good rows, and their mean cosine to the mean row."""
    length = float(np.linalg.norm(total))
    direction = total / length if length else total
    norms = cosines = 0.0
    count = 0
    for start, rows in _chunks(path):
        good = has_text[start : start + len(rows)] & np.isfinite(rows).all(axis=1) & (rows != 0).any(axis=1)
        vectors = rows[good].astype(np.float64)
        norm = np.linalg.norm(vectors, axis=1)
        norms += float(norm.sum())
        cosines += float((vectors @ direction / norm).sum())
        count += len(vectors)
    return (norms / count, cosines / count) if count else (None, None)


def _chunks(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, rows) in copies, so that what was read is not kept mapped."""
    rows = len(load_npy(path))
    for start in range(0, rows, CHUNK_ROWS):
        yield start, np.array(load_npy(path)[start : start + CHUNK_ROWS])


def _row_hashes(rows: np.ndarray) -> np.ndarray:
    """uint64 (n,): a hash of the bits of each row; among ten million rows a clash has odds of 1 in 10^5."""
    bits = rows.view(np.dtype(f"<u{rows.dtype.itemsize}")).astype(np.uint64)
    odd = np.random.default_rng(rows.shape[1]).integers(0, 1 << 63, rows.shape[1], np.uint64) * 2 + 1
    with np.errstate(over="ignore"):
        mixed = (bits ^ (bits << np.uint64(29))) * odd
        mixed ^= mixed >> np.uint64(32)
        return (mixed * odd[::-1]).sum(axis=1, dtype=np.uint64)


def _text_numbers(file: Path, column: str) -> tuple[np.ndarray, int]:
    """(n + 1,) bool: which rows have text; and the number of different texts."""
    import polars as pl

    text = pl.col(column)
    table = (
        pl.scan_parquet(file, glob=False).select(told=text.str.strip_chars() != "", key=text.hash()).collect()
    )
    told = table["told"].to_numpy()
    return np.concatenate([[False], told]), table.filter(pl.col("told"))["key"].n_unique()
