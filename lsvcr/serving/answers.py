"""User vectors to ranked rows of a snapshot: what the bundle holds and what was added, without what is left out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lsvcr.schema import Task
from lsvcr.serving.bundle import PartFiles
from lsvcr.serving.encoder import Encoder
from lsvcr.serving.histories import Rows, steps
from lsvcr.serving.hnsw import HnswIndex
from lsvcr.serving.index import Found, Index, open_index
from lsvcr.serving.snapshot import Snapshot
from lsvcr.serving.topk import best, dots


@dataclass(frozen=True)
class ServedPart:
    """What answers one task.

    Attributes:
        index: searches the bundle's videos; None for CommRank, which ranks a video's comments.
    """

    task: Task
    encoder: Encoder
    index: Index | None

    @classmethod
    def load(cls, files: PartFiles, threads: int) -> "ServedPart":
        """Make the files of a part ready.

        Raises:
            BundleError: its graph cannot be read.
        """
        is_rec = files.task is Task.REC
        encoder = Encoder(files.encoder, with_watched=not is_rec, threads=threads)
        if not is_rec:
            return cls(files.task, encoder, None)
        if files.graph is not None:
            return cls(files.task, encoder, HnswIndex(files.items, files.graph, threads))
        return cls(files.task, encoder, open_index(files.items, files.score, threads))

    def users(
        self,
        snapshot: Snapshot,
        histories: Sequence[Rows],
        limits: tuple[int, int],
        watched: np.ndarray | None = None,
    ) -> np.ndarray:
        """User vectors (B, d) float32; `limits` are the steps of each history that count, `watched` is (B, d)."""
        return self.encoder.users(steps(snapshot, self.task, histories, *limits), watched)


def recommended_rows(
    snapshot: Snapshot,
    part: ServedPart,
    users: np.ndarray,
    ks: Sequence[int],
    without: Sequence[np.ndarray],
    chosen: Sequence[np.ndarray | None],
) -> list[Found]:
    """The best videos of each user.

    Args:
        users: (B, d).
        ks: how many for each.
        without: video rows that each does not get; hidden ones nobody gets.
        chosen: the live rows to rank, ascending; None = all.
    """
    found: dict[int, Found] = {}
    free = [place for place, rows in enumerate(chosen) if rows is None]
    if free:
        asked = [ks[place] for place in free]
        left_out = [without[place] for place in free]
        found = dict(zip(free, _search(snapshot, part, users[free], asked, left_out), strict=True))
    for place, rows in enumerate(chosen):
        if rows is not None:
            rest = rows[~np.isin(rows, without[place])]
            found[place] = rank_rows(snapshot, part, users[place], rest, ks[place])
    return [found[place] for place in range(len(users))]


def rank_rows(snapshot: Snapshot, part: ServedPart, user: np.ndarray, rows: np.ndarray, k: int) -> Found:
    """The k best of chosen rows (m,); equal scores in ascending row."""
    rows = np.sort(rows)
    scores = dots(snapshot.items(part.task, rows), user)
    places = best(scores, k)
    return rows[places], scores[places]


def _search(
    snapshot: Snapshot, part: ServedPart, users: np.ndarray, ks: Sequence[int], without: Sequence[np.ndarray]
) -> list[Found]:
    """Over all videos: the index finds the bundle's, one more product those that were added."""
    assert part.index is not None, "only Rec searches"
    hidden = snapshot.videos.hidden
    left_out = [np.concatenate([rows, hidden]) for rows in without] if len(hidden) else list(without)
    stored = part.index.search(users, ks, left_out)
    items = snapshot.added[part.task].items
    if not len(items):
        return stored
    first = len(part.index)
    found = []
    for user, k, rows, (base_rows, base_scores) in zip(users, ks, left_out, stored, strict=True):
        own = dots(items, user)
        own[rows[rows >= first] - first] = -np.inf
        places = best(own, k)
        all_rows = np.concatenate([base_rows, places + first])
        all_scores = np.concatenate([base_scores, own[places]])
        order = best(all_scores, k)
        found.append((all_rows[order], all_scores[order]))
    return found
