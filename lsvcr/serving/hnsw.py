"""An approximate index for catalogues too large to look at every row: faiss's HNSW graph over the item vectors.

What it proposes is scored from the stored rows, so a score is the same as the exact index gives. A user of whom too few
proposals are left (many videos excluded or removed) gets more of them, and at last a look at all rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsvcr.schema import PAD
from lsvcr.serving.errors import BundleError
from lsvcr.serving.index import ROUNDING, Found, best_of, best_reaching, exact_scores, leave_out, open_index
from lsvcr.serving.rows import RowKind, StoredRows
from lsvcr.serving.topk import reached_by

_LINKS = 32
"""Neighbours of a vector in the graph; faiss's M."""
_BUILD_EFFORT = 200
"""Candidates looked at for each vector when it is linked; faiss's efConstruction."""
_SEARCH_EFFORT = 128
"""Candidates looked at for a request, at least; faiss's efSearch."""
_MOST_EXCLUDED = 1000
"""Proposals asked for at first beyond k, at most."""
_GROWTH = 4
_WORTH = 8
"""A search that would propose an eighth of all rows is not faster than a look at all of them."""


def write_hnsw(path: Path, items: np.ndarray, rows: RowKind) -> None:
    """Build the graph of item vectors (n + 1, d) float32 and write it; `rows` other than float32 halve its vectors."""
    faiss = _faiss(path)
    width = items.shape[1]
    if rows == "float32":
        index = faiss.IndexHNSWFlat(width, _LINKS, faiss.METRIC_INNER_PRODUCT)
    else:
        kind = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexHNSWSQ(width, kind, _LINKS, faiss.METRIC_INNER_PRODUCT)
        index.train(items[:1])
    index.hnsw.efConstruction = _BUILD_EFFORT
    index.add(np.ascontiguousarray(items, dtype=np.float32))
    path.parent.mkdir(parents=True, exist_ok=True)
    faiss.write_index(index, str(path))


class HnswIndex:
    """A graph that `write_hnsw` wrote, over stored rows (n + 1, d); see `index.Index`.

    Args:
        rows: the stored rows, row 0 padding.
        path: the file.
        threads: of one search.

    Raises:
        BundleError: faiss cannot read the file, or is not installed.
    """

    def __init__(self, rows: StoredRows, path: Path, threads: int = 1) -> None:
        faiss = _faiss(path)
        self._rows = rows
        try:
            self._index: Any = faiss.read_index(str(path))
        except RuntimeError as broken:
            reason = " ".join(str(broken).split())[:200]
            raise BundleError(f"{path} is no index that faiss reads ({reason}); export it again") from broken
        if self._index.ntotal != len(self):
            raise BundleError(
                f"{path} indexes {self._index.ntotal} rows, not {len(self)}; export the bundle again"
            )
        self._parameters = faiss.SearchParametersHNSW
        faiss.omp_set_num_threads(threads)

    def __len__(self) -> int:
        return len(self._rows.values)

    def search(self, users: np.ndarray, ks: Sequence[int], without: Sequence[np.ndarray]) -> list[Found]:
        """As `Index.search`; a row among the best may be missed, one that must not come never comes."""
        found: dict[int, Found] = {}
        wanted = [k + min(len(rows), _MOST_EXCLUDED) + 1 for k, rows in zip(ks, without, strict=True)]
        waiting = list(range(len(users)))
        while waiting:
            fetch = max(wanted[place] for place in waiting)
            if fetch * _WORTH >= len(self):
                found |= {place: self._exact(users[place], ks[place], without[place]) for place in waiting}
                break
            for place, rows in zip(waiting, self._proposed(users[waiting], fetch), strict=True):
                rows = rows[~np.isin(rows, without[place])]
                if len(rows) >= ks[place]:
                    found[place] = best_of(self._rows, users[place], rows, ks[place])
                else:
                    wanted[place] = fetch * _GROWTH
            waiting = [place for place in waiting if place not in found]
        return [found[place] for place in range(len(users))]

    def _proposed(self, users: np.ndarray, fetch: int) -> list[np.ndarray]:
        """About `fetch` near rows of each user, ascending."""
        effort = self._parameters(efSearch=max(_SEARCH_EFFORT, 2 * fetch))
        _, rows = self._index.search(np.ascontiguousarray(users), fetch, params=effort)
        return [np.sort(own[own > PAD]) for own in rows]

    def _exact(self, user: np.ndarray, k: int, without: np.ndarray) -> Found:
        scores = exact_scores(self._rows, user)
        leave_out(scores, without)
        return best_reaching(self._rows, user, scores, reached_by(scores, k) - 2 * ROUNDING, k)


def measured_recall(rows: StoredRows, path: Path, users: np.ndarray, k: int = 10) -> float:
    """Share of the exact k best of users (B, d) that the graph finds."""
    nothing = [np.zeros(0, dtype=np.int64)] * len(users)
    near = HnswIndex(rows, path).search(users, [k] * len(users), nothing)
    exact = open_index(rows).search(users, [k] * len(users), nothing)
    hits = [len(np.intersect1d(one[0], other[0])) for one, other in zip(near, exact, strict=True)]
    return float(np.sum(hits) / max(1, sum(len(rows) for rows, _ in exact)))


def _faiss(path: Path) -> Any:
    try:
        import faiss
    except ImportError as missing:
        raise BundleError(
            f"{path} needs faiss ({missing}): pip install 'lsvcr[serve]', or export the bundle with --ann_from 0"
        ) from missing
    return faiss
