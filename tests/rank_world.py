"""Hand-made prepared datasets for the tests of stage two, in memory or on disk, whose every id is known."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lsvcr.data.store import DATASET_KIND, SAMPLE_DTYPE, Dataset, open_dataset
from lsvcr.schema import FORMAT_VERSION, MANIFEST_FILE, Split, Task

Sample = tuple[int, int, int, int]
"""(user, videos visible, comment events visible, target or watched video)"""


@dataclass
class World:
    """Python lists that `write` turns into a prepared dataset. Users, videos and comments count from 1.

    Attributes:
        videos: for each user, the liked videos in order.
        comments: for each user, (comment, entry number) in order; a comment's video is in `video_of`.
        video_of: the video of comment i + 1; a video's comments are most liked first in this order.
        rec, comm_rank: for each split the samples.
        positives: for each split the positives of each CommRank sample.
        candidates: for each (task, split) stored candidates a row.
        counts: training interactions of video i + 1; None = 10 each.
    """

    n_videos: int
    videos: Sequence[Sequence[int]]
    comments: Sequence[Sequence[tuple[int, int]]]
    video_of: Sequence[int]
    rec: dict[Split, list[Sample]] = field(default_factory=dict)
    comm_rank: dict[Split, list[Sample]] = field(default_factory=dict)
    positives: dict[Split, list[list[int]]] = field(default_factory=dict)
    candidates: dict[tuple[Task, Split], list[list[int]]] = field(default_factory=dict)
    counts: Sequence[int] | None = None
    data_hash: str = "hash-of-the-hand-made-world"
    options: dict[str, int] = field(default_factory=dict)

    def write(self, folder: Path) -> Dataset:
        """Write the world as a prepared dataset and open it."""
        arrays = self._events() | self._samples()
        arrays["train_counts/videos"] = np.array([0, *(self.counts or [10] * self.n_videos)], dtype=np.int64)
        arrays["train_counts/comments"] = np.full(len(self.video_of) + 1, 10, dtype=np.int64)
        for name, array in arrays.items():
            path = folder / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array)
        files = {f"{name}.npy": {"bytes": (folder / f"{name}.npy").stat().st_size} for name in arrays}
        manifest = {
            "kind": DATASET_KIND,
            "format": FORMAT_VERSION,
            "data_hash": self.data_hash,
            "options": self.options,
            "counts": {"users": len(self.videos), "videos": self.n_videos, "comments": len(self.video_of)},
            "files": files,
        }
        (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
        return open_dataset(folder)

    def _events(self) -> dict[str, np.ndarray]:
        video_rows = [[], *self.videos]
        comment_rows = [[], *self.comments]
        by_video = [
            [i + 1 for i, owner in enumerate(self.video_of) if owner == v] for v in range(self.n_videos + 1)
        ]
        flat = [comment for row in comment_rows for comment, _ in row]
        return {
            "events/video_offsets": _offsets(video_rows),
            "events/video_items": _flat(video_rows),
            "events/video_times": np.arange(sum(map(len, video_rows)), dtype=np.int64),
            "events/comment_offsets": _offsets(comment_rows),
            "events/comment_items": np.array(flat, dtype=np.int32),
            "events/comment_videos": np.array(
                [self.video_of[comment - 1] for comment in flat], dtype=np.int32
            ),
            "events/comment_times": np.arange(len(flat), dtype=np.int64),
            "events/comment_groups": np.array(
                [group for row in comment_rows for _, group in row], dtype=np.int32
            ),
            "video_comments/offsets": _offsets(by_video),
            "video_comments/items": _flat(by_video),
        }

    def _samples(self) -> dict[str, np.ndarray]:
        video_start, comment_start = _offsets([[], *self.videos]), _offsets([[], *self.comments])
        arrays = {}
        for task, table in ((Task.REC, self.rec), (Task.COMM_RANK, self.comm_rank)):
            for split in Split:
                samples = table.get(split, [])
                rows = np.zeros(len(samples), dtype=SAMPLE_DTYPE)
                for number, (user, videos, comments, video) in enumerate(samples):
                    rows[number] = (
                        user,
                        0,
                        video_start[user] + videos,
                        comment_start[user] + comments,
                        video,
                    )
                stem = f"samples/{task.value}.{split.value}"
                arrays[stem] = rows
                if task is Task.COMM_RANK:
                    positives = self.positives.get(split, [])
                    arrays[f"{stem}.positive_offsets"] = _offsets(positives)
                    arrays[f"{stem}.positive_items"] = _flat(positives)
        for (task, split), lists in self.candidates.items():
            stem = f"candidates/{task.value}.{split.value}"
            if task is Task.REC:
                arrays[stem] = np.array(lists, dtype=np.int32)
            else:
                arrays[stem], arrays[f"{stem}.offsets"] = _flat(lists), _offsets(lists)
        return arrays


def _offsets(rows: Sequence[Sequence[object]]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(np.int64)


def _flat(rows: Sequence[Sequence[int]]) -> np.ndarray:
    return np.array([item for row in rows for item in row], dtype=np.int32)
