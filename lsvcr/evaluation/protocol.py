"""Which candidates a row's positives are ranked against, and the fingerprint that says so."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lsvcr.data.draws import drawn_rows
from lsvcr.data.rank import RankData
from lsvcr.data.spans import Spans, rows_of
from lsvcr.evaluation.result import Fingerprint
from lsvcr.schema import Split, Task
from lsvcr.utils.errors import UserError

TIES = "expected"
"""The value of a metric is its expectation over all orders of tied candidates."""


@dataclass(frozen=True)
class Protocol:
    """How to evaluate.

    Attributes:
        name: `full`: Rec ranks every video, CommRank every comment of the watched video. `sampled`: the candidates
            stored with the dataset.
        candidates: sampled only: use this many of a row's stored candidates, its positives first of all; 0 = all.
        filter_seen: Rec only: videos of the user's history do not rank, unless one is the target.
    """

    name: Literal["full", "sampled"] = "full"
    candidates: int = 0
    filter_seen: bool = False


FULL = Protocol("full")


@dataclass(frozen=True)
class Drawn:
    """Some rows of a split, measured in place of all of them. Their fingerprint is theirs alone.

    Attributes:
        rows: (n,) int64 sample numbers, rising.
        about: how they were drawn.
    """

    rows: np.ndarray
    about: str

    def mark(self, whole: Fingerprint) -> Fingerprint:
        """The fingerprint of these rows, from that of the whole split."""
        return replace(whole, split=f"{whole.split} ({self.about})")


def draw(total: int, limit: int, seed: int, split: Split) -> Drawn | None:
    """`limit` of a split's `total` rows, the same for the same seed; None where that is all of them, as for limit 0."""
    rows = drawn_rows(np.arange(total, dtype=np.int64), limit, seed, split)
    return None if len(rows) == total else Drawn(rows, drawn_words(len(rows), total, seed))


def drawn_words(count: int, total: int, seed: int) -> str:
    """How `count` rows of `total` were drawn, as fingerprints say it."""
    return f"{count} of {total} rows, seed {seed}"


def split_words(split: str) -> str:
    """The split of a fingerprint, as titles say it.

    >>> split_words("test"), split_words("test (9 of 20 rows, seed 1)")
    ('test split', 'test split (9 of 20 rows, seed 1)')
    """
    name, blank, drawn = split.partition(" ")
    return f"{name} split{blank}{drawn}"


def fingerprint(protocol: Protocol, data: RankData, drawn: Drawn | None = None) -> Fingerprint:
    """The fingerprint of `protocol` on the split of `data`, or on some of its rows."""
    if protocol.name == "sampled":
        candidates = f"stored, at most {protocol.candidates or stored_candidates(data)}"
    else:
        candidates = "all videos" if data.task is Task.REC else "all comments of the video"
    whole = Fingerprint(
        task=data.task.value,
        split=data.split.value,
        protocol=protocol.name,
        candidates=candidates,
        seen="filtered" if protocol.filter_seen and data.task is Task.REC else "kept",
        ties=TIES,
        data_hash=data.dataset.data_hash,
    )
    return whole if drawn is None else drawn.mark(whole)


def stored_candidates(data: RankData) -> int:
    """Candidates of a row as the dataset was prepared; a row has fewer where there are no more to be had."""
    option = data.dataset.manifest.get("options", {}).get("candidates")
    if option is not None:
        return int(option)
    return int(np.diff(data.dataset.candidates(data.task, data.split).offsets).max(initial=0))


def check(protocol: Protocol, data: RankData) -> None:
    """Raise a UserError where the dataset cannot serve the protocol."""
    wanted = protocol.candidates
    if not wanted:
        return
    stored = stored_candidates(data)
    if wanted > stored:
        raise UserError(
            f"max_candidate_num {wanted} is more than the {stored} candidates stored in {data.dataset.root}; "
            f"use at most {stored}, or prepare the dataset with --candidates {wanted}"
        )
    if wanted < 2:
        raise UserError(f"max_candidate_num {wanted}: a ranking needs at least 2 candidates")


def listed_candidates(protocol: Protocol, data: RankData, rows: np.ndarray) -> Spans:
    """Each row's candidates (not for Rec under `full`, which ranks the whole catalogue)."""
    positives = data.positives(rows)
    if protocol.name == "full":
        spans = data.video_comments(rows)
    else:
        table = data.dataset.candidates(data.task, data.split)
        spans = rows_of(table.offsets, table.items, rows)
    if protocol.candidates and int(spans.counts.max(initial=0)) > protocol.candidates:
        spans = _shortened(spans, positives, protocol.candidates)
    if protocol.filter_seen and data.task is Task.REC:
        owner, ids = spans.owner(), spans.flat()
        spans = spans.kept(positives.contains(owner, ids) | ~data.seen_videos(rows).contains(owner, ids))
    return spans


def _shortened(stored: Spans, positives: Spans, limit: int) -> Spans:
    """The first `limit` candidates of each row, where its positives take their places before all others."""
    owner, ids = stored.owner(), stored.flat()
    right = positives.contains(owner, ids)
    before = _count_before(owner, right, stored.counts)
    free = limit - np.bincount(owner[right], minlength=len(stored.counts))
    return stored.kept(right | (before < free[owner]))


def _count_before(owner: np.ndarray, right: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """For each candidate, how many of its row that stand before it are no positives."""
    others = np.cumsum(~right) - ~right
    start = np.cumsum(counts) - counts
    at_start = np.concatenate([others, [0]])[np.minimum(start, len(others))]
    return others - at_start[owner]
