"""Raw logs to the tables and arrays of a prepared dataset, in memory; no file is touched here."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from lsvcr import schema
from lsvcr.data.candidates import comm_rank_candidates, rec_candidates
from lsvcr.data.histories import comments_by_video, entry_numbers, first_of_ties, offsets_of
from lsvcr.data.indexing import encode, first_of_each, k_core, new_indices
from lsvcr.data.sources.logs import BadRows, RawLogs
from lsvcr.data.splits import TaskSplits, TimeCuts, comm_rank_splits, rec_splits, time_cuts
from lsvcr.data.store import CommentEvents, Csr, Samples, VideoEvents
from lsvcr.schema import COMMENT, LIKES, RAW_ID, TIME, USER, VIDEO, Split, Task
from lsvcr.settings import PrepareSettings
from lsvcr.utils.errors import UserError


@dataclass(frozen=True)
class Prepared:
    """What will be written: tables by file name, arrays by file name without `.npy`, figures, cut times."""

    tables: dict[str, pl.DataFrame]
    arrays: dict[str, np.ndarray]
    counts: dict[str, object]
    cuts: TimeCuts | None


@dataclass(frozen=True)
class _Kept:
    """Tables of what is kept, and the index (0 = dropped) of every code."""

    users: pl.DataFrame
    videos: pl.DataFrame
    comments: pl.DataFrame
    user_index: np.ndarray
    video_index: np.ndarray
    comment_index: np.ndarray


def assemble(logs: RawLogs, settings: PrepareSettings, bad: BadRows) -> Prepared:
    """Filter, index, sort, split and draw candidates.

    Raises:
        UserError: an event names an unknown id (see `BadRows`), or the filters leave too little.
    """
    raw = dict(logs.counts)
    logs = encode(logs, bad)
    likes = first_of_each(logs.video_events, VIDEO, logs.rows_have_order)
    touches = first_of_each(logs.comment_events, COMMENT, logs.rows_have_order)
    raw |= {
        "likes": logs.video_events.height,
        "repeated_likes": logs.video_events.height - likes.height,
        "comment_events": logs.comment_events.height,
        "repeated_comment_events": logs.comment_events.height - touches.height,
    }
    kept = _keep(logs, likes, touches, settings)
    video = _video_events(likes, kept)
    comment = _comment_events(touches, kept)
    cuts = None
    if settings.split == "temporal":
        cuts = time_cuts(video.times, settings.val_share, settings.test_share)
    splits = {
        Task.REC: rec_splits(video, comment, settings.min_history, cuts),
        Task.COMM_RANK: comm_rank_splits(video, comment, settings.min_history, cuts),
    }
    _check_splits(splits[Task.REC], settings)
    video_comments = comments_by_video(
        kept.comments[VIDEO].to_numpy(), kept.comments[LIKES].to_numpy(), kept.videos.height
    )
    samples = {task: parts.samples for task, parts in splits.items()}
    arrays = dataset_arrays(video, comment, video_comments, samples, settings)
    arrays["train_counts/videos"] = np.bincount(
        video.items[splits[Task.REC].is_known], minlength=kept.videos.height + 1
    )
    arrays["train_counts/comments"] = np.bincount(
        comment.items[splits[Task.COMM_RANK].is_known], minlength=kept.comments.height + 1
    )
    tables = {
        schema.USERS_FILE: kept.users,
        schema.VIDEOS_FILE: kept.videos,
        schema.COMMENTS_FILE: kept.comments,
    }
    return Prepared(tables, arrays, dataset_counts(raw, tables, arrays, samples), cuts)


def _keep(logs: RawLogs, likes: pl.DataFrame, touches: pl.DataFrame, settings: PrepareSettings) -> _Kept:
    """Apply the k-core, then number what is left in the order of its raw ids."""
    users, videos = likes[USER].to_numpy(), likes[VIDEO].to_numpy()
    n_users, n_videos = logs.users.height, logs.videos.height
    keep_user, keep_video = k_core(users, videos, n_users, n_videos, settings.user_core, settings.video_core)
    is_active = np.zeros(n_users, bool)
    is_active[users[keep_video[videos]]] = True
    is_active[touches[USER].to_numpy()[keep_video[touches[VIDEO].to_numpy()]]] = True
    keep_user &= is_active
    if not keep_user.any():
        raise UserError(
            f"nothing is left: no user has {settings.user_core} liked videos that {settings.video_core} users"
            f" liked ({len(users):,} likes of {n_users:,} users); lower --user_core or --video_core"
        )
    keep_comment = keep_video[logs.comments[VIDEO].to_numpy()]
    video_index = new_indices(keep_video)
    comments = logs.comments.filter(pl.Series(keep_comment))
    return _Kept(
        users=logs.users.filter(pl.Series(keep_user)).select(RAW_ID),
        videos=logs.videos.filter(pl.Series(keep_video)).select(
            RAW_ID, schema.TITLE, schema.CATEGORY, schema.AUTHOR
        ),
        comments=comments.select(
            RAW_ID, schema.CONTENT, pl.Series(VIDEO, video_index[comments[VIDEO].to_numpy()]), LIKES
        ),
        user_index=new_indices(keep_user),
        video_index=video_index,
        comment_index=new_indices(keep_comment),
    )


def _video_events(likes: pl.DataFrame, kept: _Kept) -> VideoEvents:
    owners = kept.user_index[likes[USER].to_numpy()]
    items = kept.video_index[likes[VIDEO].to_numpy()]
    stays = (owners > 0) & (items > 0)
    offsets = offsets_of(owners[stays], kept.users.height)
    return VideoEvents(offsets, items[stays], likes[TIME].to_numpy()[stays])


def _comment_events(touches: pl.DataFrame, kept: _Kept) -> CommentEvents:
    owners = kept.user_index[touches[USER].to_numpy()]
    videos = kept.video_index[touches[VIDEO].to_numpy()]
    stays = (owners > 0) & (videos > 0)
    owners, videos = owners[stays], videos[stays]
    offsets = offsets_of(owners, kept.users.height)
    return CommentEvents(
        offsets=offsets,
        items=kept.comment_index[touches[COMMENT].to_numpy()[stays]],
        videos=videos,
        times=touches[TIME].to_numpy()[stays],
        groups=entry_numbers(owners, videos, offsets),
    )


def _check_splits(rec: TaskSplits, settings: PrepareSettings) -> None:
    sizes = {split.value: len(samples) for split, samples in rec.samples.items()}
    empty = [split for split, size in sizes.items() if not size]
    if not empty:
        return
    remedy = (
        "change --val_share and --test_share"
        if settings.split == "temporal"
        else "a user needs likes at three different times after the first --min_history ones"
    )
    raise UserError(f"no sample is left for {' and '.join(empty)} (found {sizes}); {remedy}")


def dataset_arrays(
    video: VideoEvents,
    comment: CommentEvents,
    video_comments: Csr,
    samples: Mapping[Task, Mapping[Split, Samples]],
    settings: PrepareSettings,
) -> dict[str, np.ndarray]:
    """Events, samples and newly drawn candidates by file name without `.npy`."""
    arrays = {f"events/video_{name}": values for name, values in video._asdict().items()}
    arrays |= {f"events/comment_{name}": values for name, values in comment._asdict().items()}
    arrays |= {f"video_comments/{name}": values for name, values in video_comments._asdict().items()}
    for task, parts in samples.items():
        for split, own in parts.items():
            stem = f"samples/{task.value}.{split.value}"
            arrays[stem] = own.rows
            if own.positives is not None:
                arrays[f"{stem}.positive_offsets"] = own.positives.offsets
                arrays[f"{stem}.positive_items"] = own.positives.items
    n_videos = len(video_comments.offsets) - 2
    for split in (Split.VAL, Split.TEST):
        arrays[f"candidates/{Task.REC.value}.{split.value}"] = rec_candidates(
            samples[Task.REC][split], n_videos, settings.candidates, settings.seed, split
        )
        ragged = comm_rank_candidates(
            samples[Task.COMM_RANK][split], video_comments, settings.candidates, settings.seed, split
        )
        stem = f"candidates/{Task.COMM_RANK.value}.{split.value}"
        arrays[stem] = ragged.items
        arrays[f"{stem}.offsets"] = ragged.offsets
    return arrays


def dataset_counts(
    raw: dict[str, int],
    tables: dict[str, pl.DataFrame],
    arrays: dict[str, np.ndarray],
    samples: Mapping[Task, Mapping[Split, Samples]],
) -> dict[str, object]:
    """Figures for the manifest and for a person."""
    offsets, times = arrays["events/video_offsets"], arrays["events/video_times"]
    owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    has_same_before = first_of_ties(owners, times) < np.arange(len(times))
    single = {
        split.value: int((np.diff(arrays[f"candidates/comm_rank.{split.value}.offsets"]) == 1).sum())
        for split in (Split.VAL, Split.TEST)
    }
    return {
        "users": tables[schema.USERS_FILE].height,
        "videos": tables[schema.VIDEOS_FILE].height,
        "comments": tables[schema.COMMENTS_FILE].height,
        "video_events": len(times),
        "comment_events": len(arrays["events/comment_items"]),
        "cold_videos": int((arrays["train_counts/videos"][1:] < schema.COLD_BELOW).sum()),
        "video_events_at_the_time_of_the_one_before": int(has_same_before.sum()),
        "samples": {
            task.value: {split.value: len(own) for split, own in parts.items()}
            for task, parts in samples.items()
        },
        "comm_rank_rows_with_one_candidate": single,
        "raw": raw,
    }
