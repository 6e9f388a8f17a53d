"""Checks of the arrays that samples point into: events, a video's comments, positives."""

import numpy as np

from lsvcr.data.audit_tally import ROWS, Check, Tally, chunks
from lsvcr.data.histories import blocks, owners_between
from lsvcr.data.store import IMPRESSIONS, CommentEvents, Csr, Dataset, Impressions, VideoEvents
from lsvcr.schema import Split, Task


def event_checks(dataset: Dataset) -> list[Check]:
    """Offsets, ranges, order in time, repeats, and the videos of comments.

    Where offsets or ranges are broken the rest is left out.
    """
    tables = _tables(dataset)
    checks = [_offsets_check(where, table) for where, (table, _) in tables.items()]
    checks += [_range_check(where, table.items, most) for where, (table, most) in tables.items()]
    checks.append(_range_check("events.comment_videos", dataset.comment_events.videos, dataset.n_videos))
    if any(check.failed for check in checks):
        return checks
    checks += _order_checks("events.video", dataset.video_events)
    checks += _order_checks("events.comment", dataset.comment_events)
    if dataset.impressions is not None:
        checks += _order_checks(IMPRESSIONS, dataset.impressions, may_repeat=True)
        clicked = Tally(IMPRESSIONS, len(dataset.impressions.clicked))
        for start, stop in chunks(len(dataset.impressions.clicked)):
            beyond = dataset.impressions.clicked[start:stop] > 1
            clicked.mark("clicks_are_0_or_1", np.arange(start, stop), beyond)
        checks += clicked.checks()
    tally = Tally("events.comment", len(dataset.comment_events.items))
    own = video_of_comments(dataset)[dataset.comment_events.items] != dataset.comment_events.videos
    tally.mark("comments_under_their_video", np.arange(len(own)), own)
    return checks + tally.checks()


def video_of_comments(dataset: Dataset) -> np.ndarray:
    """int32 (n_comments + 1,): the video of each comment by index, 0 for padding."""
    table = dataset.video_comments
    found = np.zeros(dataset.n_comments + 1, np.int32)
    found[table.items] = np.repeat(np.arange(len(table.offsets) - 1, dtype=np.int32), np.diff(table.offsets))
    return found


def _tables(dataset: Dataset) -> dict[str, tuple[Csr, int]]:
    """Every ragged array that a sample may lead to, with its largest legal index."""
    video, comment = dataset.video_events, dataset.comment_events
    tables = {
        "events.video": (Csr(video.offsets, video.items), dataset.n_videos),
        "events.comment": (Csr(comment.offsets, comment.items), dataset.n_comments),
        "video_comments": (dataset.video_comments, dataset.n_comments),
    }
    if dataset.impressions is not None:
        tables[IMPRESSIONS] = (Csr(dataset.impressions.offsets, dataset.impressions.items), dataset.n_videos)
    for split in Split:
        positives = dataset.samples(Task.COMM_RANK, split).positives
        assert positives is not None  # CommRank samples always have them
        tables[f"comm_rank.{split.value}.positives"] = (positives, dataset.n_comments)
    return tables


def _offsets_check(where: str, table: Csr) -> Check:
    offsets = table.offsets
    bad = np.diff(offsets, append=len(table.items)) < 0
    bad[0] |= offsets[0] != 0
    bad[-1] |= offsets[-1] != len(table.items)
    tally = Tally(where, len(bad))
    tally.mark("offsets_in_order", np.arange(len(bad)), bad)
    return tally.checks()[0]


def _range_check(where: str, items: np.ndarray, most: int) -> Check:
    tally = Tally(where, len(items))
    tally.mark("items_in_range", np.arange(len(items)), (items < 1) | (items > most))
    return tally.checks()[0]


def _order_checks(
    where: str, events: VideoEvents | CommentEvents | Impressions, may_repeat: bool = False
) -> list[Check]:
    """Sorted by time inside each user, and no item twice unless items `may_repeat`."""
    tally = Tally(where, len(events.items))
    for first, last in blocks(events.offsets, ROWS):
        start, stop = int(events.offsets[first]), int(events.offsets[last])
        owners = owners_between(events.offsets, first, last)
        numbers = np.arange(start, stop)
        falls = np.zeros(stop - start, bool)
        falls[1:] = (np.diff(events.times[start:stop]) < 0) & (np.diff(owners) == 0)
        tally.mark("events_in_time_order", numbers, falls)
        if may_repeat:
            continue
        keys = owners << 31 | events.items[start:stop]
        twice = np.zeros(stop - start, bool)
        if (np.diff(np.sort(keys)) == 0).any():
            order = np.argsort(keys, kind="stable")
            twice[order[1:]] = np.diff(keys[order]) == 0
        tally.mark("each_event_once", numbers, twice)
    return tally.checks()
