"""Figures of a prepared dataset: counts, quantiles of lengths, shares of what makes data hard or doubtful.

Quantiles of whole numbers are exact (inverted distribution function): they come from counts of each value.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from lsvcr import schema
from lsvcr.data.audit_tally import chunks
from lsvcr.data.calendar import date, outside
from lsvcr.data.sources import OFFICIAL
from lsvcr.data.store import CommentEvents, Dataset, VideoEvents
from lsvcr.schema import Split, Task

QUANTILES = {"p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p99": 0.99}
TOP_SHARE = 0.01
SHOWN_REPEATS = 5


def quantiles(values: np.ndarray) -> dict[str, float] | None:
    """min, 10, 25, 50, 75, 90, 99 %, max and mean of whole numbers from 0; None for none."""
    return _of_counts(np.bincount(values)) if len(values) else None


def counts(dataset: Dataset) -> dict[str, Any]:
    """How much there is of everything; `impressions` is None where the dataset has none."""
    candidates = {
        task.value: {
            split.value: len(dataset.candidates(task, split).items) for split in (Split.VAL, Split.TEST)
        }
        for task in Task
    }
    return {
        "users": dataset.n_users,
        "videos": dataset.n_videos,
        "comments": dataset.n_comments,
        "video_events": len(dataset.video_events.items),
        "comment_events": len(dataset.comment_events.items),
        "impressions": None if dataset.impressions is None else len(dataset.impressions.items),
        "samples": {
            task.value: {split.value: len(dataset.samples(task, split)) for split in Split} for task in Task
        },
        "candidates": candidates,
    }


def lengths(dataset: Dataset) -> dict[str, Any]:
    """Quantiles of histories (by task and split), events a user, comments a video and an entry."""
    comment, shown = dataset.comment_events, dataset.impressions
    return {
        "video_history": _by_table(dataset, _video_lengths),
        "comment_history": _by_table(dataset, _entry_counts),
        "likes_of_a_user": quantiles(np.diff(dataset.video_events.offsets[1:])),
        "comment_events_of_a_user": quantiles(np.diff(comment.offsets[1:])),
        "impressions_of_a_user": None if shown is None else quantiles(np.diff(shown.offsets[1:])),
        "comments_of_a_video": quantiles(np.diff(dataset.video_comments.offsets[1:])),
        "comments_of_a_watched_video": quantiles(_watched_sizes(dataset)),
        "comments_of_an_entry": quantiles(_entry_sizes(comment)),
    }


def shares(dataset: Dataset) -> dict[str, Any]:
    """Shares (0 to 1) of what a reader of any figure should know; None where nothing can be said."""
    train = dataset.train_counts()
    raw = dataset.manifest.get("counts", {}).get("raw", {})
    return {
        "likes_at_the_time_of_the_one_before": _tied(dataset.video_events),
        "comment_events_at_the_time_of_the_one_before": _tied(dataset.comment_events),
        "test_targets_tied_with_the_event_before": {
            task.value: _tied_targets(dataset, task) for task in Task
        },
        "videos_without_comments": _mean(np.diff(dataset.video_comments.offsets[1:]) == 0),
        "repeated_likes_of_raw": _ratio(raw.get("repeated_likes"), raw.get("likes")),
        "repeated_comment_events_of_raw": _ratio(
            raw.get("repeated_comment_events"), raw.get("comment_events")
        ),
        "cold_videos": _mean(train[1:] < schema.COLD_BELOW),
        "cold_test_targets": {task.value: _targets_below(dataset, task, schema.COLD_BELOW) for task in Task},
        "unseen_test_targets": {task.value: _targets_below(dataset, task, 1) for task in Task},
        "comm_rank_rows_with_one_candidate": {
            split.value: _mean(np.diff(dataset.candidates(Task.COMM_RANK, split).offsets) == 1)
            for split in (Split.VAL, Split.TEST)
        },
        "likes_on_the_top_videos": _concentration(dataset),
        **_impression_shares(dataset),
    }


def _impression_shares(dataset: Dataset) -> dict[str, float | None]:
    """Which impressions were clicked, whose click is a like's, and which were left out."""
    told = dataset.manifest["counts"].get("impressions", {})
    rows, left_out = told.get("rows"), told.get("left_out")
    return {
        "clicked_impressions": None if dataset.impressions is None else _mean(dataset.impressions.clicked),
        "clicks_taken_from_likes": _ratio(told.get("clicked_from_likes"), rows),
        "impressions_left_out": None if rows is None else _ratio(left_out, rows + left_out),
    }


def time_span(dataset: Dataset) -> dict[str, Any]:
    """First and last event in Unix ms, and as UTC dates unless the times are no calendar times.

    `outside`: sentences about likes and comment interactions at no calendar times; none where times are counters.
    """
    named = {"likes": dataset.video_events.times, "comment interactions": dataset.comment_events.times}
    ends = [(int(times.min()), int(times.max())) for times in named.values() if len(times)]
    if not ends:
        return {"first_ms": None, "last_ms": None, "first": None, "last": None, "outside": []}
    first, last = min(low for low, _ in ends), max(high for _, high in ends)
    found = {} if dataset.manifest.get("source") == OFFICIAL else {k: outside(v) for k, v in named.items()}
    return {
        "first_ms": first,
        "last_ms": last,
        "first": date(first),
        "last": date(last),
        "outside": [wrong.says(what) for what, wrong in found.items() if wrong is not None],
    }


def texts(dataset: Dataset) -> dict[str, Any]:
    """For `titles` and `comments`: lengths in characters, empty ones, and texts that several share."""
    return {
        "titles": _texts(dataset, schema.VIDEOS_FILE, schema.TITLE),
        "comments": _texts(dataset, schema.COMMENTS_FILE, schema.CONTENT),
    }


def _texts(dataset: Dataset, file: str, column: str) -> dict[str, Any]:
    """Texts are told apart by 64-bit hashes: a clash among ten million is out of the question."""
    import polars as pl

    text = pl.col(column)
    table = (
        pl.scan_parquet(dataset.root / file, glob=False)
        .select(characters=text.str.len_chars(), key=text.hash(), empty=text.str.strip_chars() == "")
        .with_row_index("row")
        .collect()
    )
    told = table.filter(~pl.col("empty"))
    groups = told.group_by("key").agg(pl.len().alias("times"), pl.col("row").min())
    top = (
        groups.filter(pl.col("times") > 1).sort("times", "row", descending=[True, False]).head(SHOWN_REPEATS)
    )
    shown = pl.read_parquet(dataset.root / file, columns=[column], glob=False)[column].gather(top["row"])
    repeated = int(groups.filter(pl.col("times") > 1)["times"].sum())
    return {
        "texts": table.height,
        "distinct": groups.height,
        "characters": quantiles(table["characters"].to_numpy()),
        "empty": _ratio(table.height - told.height, table.height),
        "shared_with_another": _ratio(repeated, table.height),
        "most_repeated": [
            {"text": text[:80], "times": int(times)} for text, times in zip(shown, top["times"], strict=True)
        ],
    }


def _by_table(dataset: Dataset, lengths_of: Callable[[Dataset, np.ndarray], np.ndarray]) -> dict[str, Any]:
    """Quantiles over the training and the test samples of both tasks."""
    return {
        task.value: {
            split.value: _quantiles_in_chunks(dataset, dataset.samples(task, split).rows, lengths_of)
            for split in (Split.TRAIN, Split.TEST)
        }
        for task in Task
    }


def _quantiles_in_chunks(
    dataset: Dataset, rows: np.ndarray, lengths_of: Callable[[Dataset, np.ndarray], np.ndarray]
) -> dict[str, float] | None:
    counted = np.zeros(1, np.int64)
    for start, stop in chunks(len(rows)):
        part = np.bincount(lengths_of(dataset, rows[start:stop]))
        longer, shorter = (part, counted) if len(part) > len(counted) else (counted, part)
        longer[: len(shorter)] += shorter
        counted = longer
    return _of_counts(counted) if len(rows) else None


def _of_counts(counted: np.ndarray) -> dict[str, float]:
    """Quantiles of values of which `counted[v]` are v."""
    up_to = np.cumsum(counted)
    total = int(up_to[-1])
    found = {name: int(np.searchsorted(up_to, np.ceil(share * total))) for name, share in QUANTILES.items()}
    present = np.flatnonzero(counted)
    mean = float(np.arange(len(counted)) @ counted / total)
    return {"min": int(present[0]), **found, "max": int(present[-1]), "mean": mean}


def _video_lengths(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Videos in each history."""
    return rows["video_end"] - dataset.video_events.offsets[rows["user"]]


def _entry_counts(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Entries in each comment history."""
    events = dataset.comment_events
    some = rows["comment_end"] > events.offsets[rows["user"]]
    found = np.zeros(len(rows), np.int64)
    found[some] = events.groups[rows["comment_end"][some] - 1] + 1
    return found


def _watched_sizes(dataset: Dataset) -> np.ndarray:
    """Comments of the video that each CommRank training sample watches."""
    sizes = np.diff(dataset.video_comments.offsets)
    return sizes[dataset.samples(Task.COMM_RANK, Split.TRAIN).video]


def _entry_sizes(events: CommentEvents) -> np.ndarray:
    """Comments of each entry of each user."""
    if not len(events.groups):
        return np.zeros(0, np.int64)
    is_start = np.ones(len(events.groups), bool)
    is_start[1:] = np.diff(events.groups) != 0
    # A user whose only entry follows a user of one entry: both have the number 0.
    firsts = events.offsets[:-1]
    is_start[firsts[firsts < len(is_start)]] = True
    return np.diff(np.append(np.flatnonzero(is_start), len(is_start)))


def _tied(events: VideoEvents | CommentEvents) -> float | None:
    """Share of events at the same time as the one before of the same user."""
    if not len(events.times):
        return None
    same = np.zeros(len(events.times), bool)
    same[1:] = events.times[1:] == events.times[:-1]
    firsts = events.offsets[:-1]
    same[firsts[firsts < len(same)]] = False
    return _mean(same)


def _tied_targets(dataset: Dataset, task: Task) -> float | None:
    """Share of test rows before whose target another event of the user has the same time.

    Such an event is no part of the history; which of the two came first is chance.
    """
    samples = dataset.samples(task, Split.TEST)
    if not len(samples):
        return None
    # The first event at the cut is the target unless another one stands before it.
    if task is Task.REC:
        videos, ends = dataset.video_events.items, samples.video_end
    else:
        videos, ends = dataset.comment_events.videos, samples.comment_end
    return _mean(videos[np.minimum(ends, len(videos) - 1)] != samples.video)


def _targets_below(dataset: Dataset, task: Task, limit: int) -> float | None:
    """Share of test targets (comm_rank: positives) with fewer training interactions than `limit`."""
    samples = dataset.samples(task, Split.TEST)
    if samples.positives is None:
        return _mean(dataset.train_counts()[samples.video] < limit)
    return _mean(dataset.comment_train_counts()[samples.positives.items] < limit)


def _concentration(dataset: Dataset) -> float | None:
    """Share of all likes that the most liked `TOP_SHARE` of the videos have."""
    popular = np.sort(np.bincount(dataset.video_events.items, minlength=dataset.n_videos + 1)[1:])[::-1]
    return _ratio(int(popular[: max(1, round(TOP_SHARE * len(popular)))].sum()), int(popular.sum()))


def _mean(flags: np.ndarray) -> float | None:
    return float(np.mean(flags)) if len(flags) else None


def _ratio(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None
