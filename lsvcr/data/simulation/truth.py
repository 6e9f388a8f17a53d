"""The planted truth on disk, and the oracle that ranks with it."""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lsvcr.data.simulation.behaviour import Samplers, comment_weights, hour_of
from lsvcr.data.simulation.lexicon import Lexicon
from lsvcr.data.simulation.presets import Shape
from lsvcr.data.simulation.tastes import Tastes, taste_at
from lsvcr.data.simulation.world import Comments, Videos, video_entries
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import load_npy, read_json, write_json

TRUTH_DIR = "truth"
_TABLES: dict[str, type] = {"videos": Videos, "comments": Comments, "tastes": Tastes}


@dataclass(frozen=True)
class Truth:
    """All that was planted. Index arrays are positions in `users`, `videos`, `comments`."""

    user_ids: np.ndarray
    videos: Videos
    comments: Comments
    tastes: Tastes
    shape: Shape
    related: np.ndarray
    topics: tuple[str, ...]
    tones: tuple[str, ...]

    @cached_property
    def user_row(self) -> dict[int, int]:
        """Raw user id -> row."""
        return {int(raw): row for row, raw in enumerate(self.user_ids)}

    @cached_property
    def video_row(self) -> dict[int, int]:
        """Raw video id -> row."""
        return {int(raw): row for row, raw in enumerate(self.videos.raw_id)}

    @cached_property
    def comment_row(self) -> dict[int, int]:
        """Raw comment id -> row."""
        return {int(raw): row for row, raw in enumerate(self.comments.raw_id)}

    @cached_property
    def video_weight(self) -> np.ndarray:
        """(N, K) float64: popularity and freshness of a video, split over its topics."""
        item, topic, weight = video_entries(self.shape, self.videos)
        table = np.zeros((len(self.videos), len(self.topics)))
        np.add.at(table, (item, topic), weight)
        return table


def save_truth(folder: Path, world: Samplers, tastes: Tastes, user_ids: np.ndarray, lexicon: Lexicon) -> None:
    """Write the truth as .npy files, one a field, and `truth.json` with the names."""
    folder.mkdir(parents=True)
    np.save(folder / "user_ids.npy", user_ids)
    np.save(folder / "related.npy", world.related)
    for name, table in (("videos", world.videos), ("comments", world.comments), ("tastes", tastes)):
        for field in fields(_TABLES[name]):
            np.save(folder / f"{name}_{field.name}.npy", getattr(table, field.name))
    preset = world.preset.as_dict()
    write_json(
        folder / "truth.json",
        {"topics": list(lexicon.topic_names), "tones": list(lexicon.tone_names), "shape": preset["shape"]},
    )


def load_truth(folder: str | Path) -> Truth:
    """Read `truth/` from a simulated folder (or the truth folder itself).

    Raises:
        UserError: the folder holds no truth, or a file is broken.
    """
    folder = Path(folder)
    if not (folder / "truth.json").exists():
        folder = folder / TRUTH_DIR
    if not (folder / "truth.json").exists():
        raise UserError(f"{folder} holds no planted truth: only folders written by `lsvcr simulate` do")
    names = read_json(folder / "truth.json")
    shape: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in names["shape"].items()
    }
    tables = {
        name: kind(**{field.name: load_npy(folder / f"{name}_{field.name}.npy") for field in fields(kind)})
        for name, kind in _TABLES.items()
    }
    return Truth(
        user_ids=load_npy(folder / "user_ids.npy"),
        shape=Shape(**shape),
        related=load_npy(folder / "related.npy"),
        topics=tuple(names["topics"]),
        tones=tuple(names["tones"]),
        **tables,
    )


def video_scores(truth: Truth, user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Log-probability (up to a constant a row) that the user's next like at `time` is each video.

    Args:
        user: (E,) user rows. time: (E,) int64 Unix ms.

    Returns:
        (E, N) float64; -inf for videos not yet uploaded.
    """
    user, time = np.asarray(user), np.asarray(time)
    topic, tone = taste_at(truth.tastes, truth.shape, truth.related, len(truth.tones), user, time, "video")
    score = np.log(topic @ truth.video_weight.T) + np.log(tone[:, truth.videos.tone])
    waiting = np.maximum(truth.videos.upload_hour, 0)[None, :] > hour_of(time)[:, None]
    return np.where(waiting, -np.inf, score)


def oracle_scores(truth: Truth, user_raw_id: int, time: int, video_raw_ids: np.ndarray) -> np.ndarray:
    """Scores (n,) of videos for one user at one time (Unix ms), by raw ids; higher is likelier next."""
    rows = np.array([truth.video_row[int(raw)] for raw in video_raw_ids], dtype=np.int64)
    user = np.array([truth.user_row[int(user_raw_id)]])
    return video_scores(truth, user, np.array([time]))[0, rows]


def oracle_comment_scores(
    truth: Truth, user_raw_id: int, time: int, comment_raw_ids: np.ndarray
) -> np.ndarray:
    """Scores (n,) of comments for one user at one time (Unix ms), by raw ids."""
    rows = np.array([truth.comment_row[int(raw)] for raw in comment_raw_ids], dtype=np.int64)
    user = np.array([truth.user_row[int(user_raw_id)]])
    topic, tone = taste_at(
        truth.tastes, truth.shape, truth.related, len(truth.tones), user, np.array([time]), "comment"
    )
    return np.log(
        comment_weights(
            truth.videos, truth.comments, truth.shape, rows, topic, tone, np.zeros(len(rows), np.int64)
        )
    )
