"""The five raw files, written block by block."""

from pathlib import Path

import numpy as np
import polars as pl

from lsvcr.data.simulation.behaviour import Events
from lsvcr.data.simulation.presets import DAY_MS, HOUR_MS, START_MS
from lsvcr.data.simulation.world import Comments, Videos

ACTIVITY = np.array(["full_active", "high_active", "middle_active", "low_active"])
RANGES = np.array(["0", "(0,10]", "(10,50]", "(50,100]", "(100,150]", "(150,250]", "(250,500]", "500+"])
RANGE_EDGES = np.array([0, 10, 50, 100, 150, 250, 500])
CLICK_LEAST, CLICK_MOST = 0.1, 0.9
"""Chance of a click without a like, of a video that suits the user not at all and best."""
AGES = np.array(["0-12", "12-17", "18-23", "24-30", "31-40", "41-49", "50+"])


class CsvWriter:
    """Appends frames to one CSV file; the header comes with the first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._header = True

    def add(self, frame: pl.DataFrame) -> None:
        """Write the rows of `frame` behind those already there."""
        with self._path.open("ab") as file:
            frame.write_csv(file, include_header=self._header)
        self._header = False


def _flag(rng: np.random.Generator, chance: np.ndarray) -> np.ndarray:
    return (rng.random(len(chance)) < chance).astype(np.int8)


def impressions(
    rng: np.random.Generator,
    videos: Videos,
    user_ids: np.ndarray,
    likes: Events,
    unliked: Events,
    appeal: np.ndarray,
) -> pl.DataFrame:
    """Rows of `user_video_inter.csv` in time order of the block.

    What is liked was clicked; of the rest, the more the better it suits the user: `appeal` (len(unliked),), 0 to 1.
    """
    user = np.concatenate((likes.user, unliked.user))
    video = np.concatenate((likes.item, unliked.item))
    time = np.concatenate((likes.time, unliked.time))
    liked = np.arange(len(user)) < len(likes)
    click = np.concatenate((np.ones(len(likes)), CLICK_LEAST + (CLICK_MOST - CLICK_LEAST) * np.sqrt(appeal)))
    order = np.argsort(time, kind="stable")
    user, video, time, liked, click = user[order], video[order], time[order], liked[order], click[order]
    duration = videos.duration_ms[video]
    part = np.where(liked, rng.beta(5, 1.2, len(user)) * 1.3, rng.beta(1.1, 2.2, len(user)))
    played = np.round(duration * part)
    need = np.minimum(duration, 18_000)
    return pl.DataFrame(
        {
            "user_id": user_ids[user],
            "video_id": videos.raw_id[video],
            "p_hourmin": (time % DAY_MS) // HOUR_MS * 100 + (time % HOUR_MS) // 60_000,
            "time_ms": time.astype(np.float64),
            "is_click": _flag(rng, click),
            "is_like": liked.astype(np.int8),
            "is_follow": _flag(rng, np.where(liked, 0.04, 0.002)),
            "is_comment": _flag(rng, np.where(liked, 0.03, 0.004)),
            "is_forward": _flag(rng, np.where(liked, 0.03, 0.002)),
            "is_collect": _flag(rng, np.where(liked, 0.05, 0.003)),
            "is_hate": _flag(rng, np.where(liked, 0.0, 0.002)),
            "long_view": (played >= need).astype(np.int8),
            "play_time_ms": played,
            "duration_ms": duration,
            "profile_stay_time": np.where(
                rng.random(len(user)) < 0.03, rng.integers(500, 20_000, len(user)), 0
            ),
            "comment_stay_time": np.where(
                rng.random(len(user)) < 0.2, rng.integers(800, 60_000, len(user)), 0
            ),
        }
    )


def comment_interactions(
    rng: np.random.Generator, videos: Videos, comments: Comments, user_ids: np.ndarray, events: Events
) -> pl.DataFrame:
    """Rows of `user_comment_inter.csv` in time order of the block; times are Unix seconds."""
    order = np.argsort(events.time, kind="stable")
    user, item, time = events.user[order], events.item[order], events.time[order]
    reply = _flag(rng, np.full(len(user), 0.06))
    only_reply = (reply == 1) & (rng.random(len(user)) < 0.5)
    return pl.DataFrame(
        {
            "user_id": user_ids[user],
            "comment_id": comments.raw_id[item],
            "time_stamp": time // 1_000,
            "photo_id": videos.raw_id[comments.video[item]],
            "is_like": np.where(only_reply, 0, 1).astype(np.int8),
            "is_reply": reply,
        }
    )


def _ranges(counts: np.ndarray) -> np.ndarray:
    return RANGES[np.searchsorted(RANGE_EDGES, counts, side="left")]


def user_features(rng: np.random.Generator, user_ids: np.ndarray) -> pl.DataFrame:
    """Rows of `user_features.csv`; nothing in them tells a taste."""
    count = len(user_ids)
    follow = rng.lognormal(3.5, 1.2, count).astype(np.int64)
    fans = rng.lognormal(2.0, 1.5, count).astype(np.int64)
    friends = np.minimum(follow, fans) // 2
    columns: dict[str, np.ndarray] = {
        "user_id": user_ids,
        "user_active_degree": rng.choice(ACTIVITY, count, p=[0.55, 0.3, 0.1, 0.05]),
        "is_live_author": _flag(rng, np.full(count, 0.03)),
        "produce_video_num": rng.geometric(0.15, count) - 1,
        "follow_count": follow,
        "follow_user_num_range": _ranges(follow),
        "fans_count": fans,
        "fans_user_num_range": _ranges(fans),
        "friend_user_num_range": _ranges(friends),
        "register_days": rng.integers(30, 2_500, count),
        "gender": rng.choice(np.array(["M", "F", "U"]), count, p=[0.48, 0.48, 0.04]),
        "age_range": rng.choice(AGES, count, p=[0.02, 0.1, 0.25, 0.25, 0.22, 0.1, 0.06]),
    }
    for feature in range(19):
        columns[f"onehot_feat{feature}"] = rng.integers(0, 2 + 3 * feature, count)
    return pl.DataFrame(columns)


def video_features(
    rng: np.random.Generator, videos: Videos, captions: list[str], categories: np.ndarray, start: int
) -> pl.DataFrame:
    """Rows `start`... of `video_features.csv`; `categories` (K,) names each topic's broad category."""
    rows = slice(start, start + len(captions))
    uploaded = START_MS + videos.upload_hour[rows].astype(np.int64) * HOUR_MS
    return pl.DataFrame(
        {
            "video_id": videos.raw_id[rows],
            "author_id": videos.author[rows],
            "video_type": np.where(rng.random(len(captions)) < 0.02, "AD", "NORMAL"),
            "upload_dt": pl.Series(uploaded).cast(pl.Datetime("ms")).dt.strftime("%Y-%m-%d"),
            "caption": captions,
            "duration": videos.duration_ms[rows],
            "category": categories[videos.topic[rows]],
        }
    )


def comment_features(
    rng: np.random.Generator, videos: Videos, comments: Comments, contents: list[str], start: int
) -> pl.DataFrame:
    """Rows `start`... of `comment_features.csv`; like counts are the platform's, older than the log."""
    rows = slice(start, start + len(contents))
    video = comments.video[rows]
    fame = videos.popularity[video] / videos.popularity.max()
    likes = rng.poisson(1.0 + 400.0 * fame * comments.weight[rows]) + rng.geometric(0.5, len(contents)) - 1
    return pl.DataFrame(
        {
            "comment_id": comments.raw_id[rows],
            "comment_content": contents,
            "video_id": videos.raw_id[video],
            "comment_like_cnt": likes,
            "comment_reply_out": rng.binomial(likes, 0.08),
            "show_comment_cnt_td": likes * rng.integers(5, 40, len(contents)) + 1,
        }
    )
