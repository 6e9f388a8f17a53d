"""Hand-made miniatures of published raw layouts: headers, column order, quoting and oddities as published."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KUAICOMT_HEADERS = {
    "user_video_inter.csv": "user_id,video_id,p_hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,"
    "is_collect,is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time",
    "user_comment_inter.csv": "user_id,comment_id,time_stamp,photo_id,is_like,is_reply",
    "user_features.csv": "user_id,user_active_degree,is_live_author,produce_video_num,follow_count,"
    "follow_user_num_range,fans_count,fans_user_num_range,friend_user_num_range,register_days,gender,age_range,"
    + ",".join(f"onehot_feat{i}" for i in range(19)),
    "video_features.csv": "video_id,author_id,video_type,upload_dt,caption,duration,category",
    "comment_features.csv": "comment_id,comment_content,video_id,comment_like_cnt,comment_reply_out,"
    "show_comment_cnt_td",
}

START_MS = 1_696_118_400_000


def write_csv(path: Path, header: str, rows: Sequence[Sequence[Any]]) -> Path:
    """A CSV file as pandas would write it: quotes where needed, line feeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        stream.write(header + "\n")
        csv.writer(stream, lineterminator="\n").writerows(rows)
    return path


def write_kuaicomt(
    folder: Path,
    *,
    likes: Sequence[tuple[int, int, int]],
    touches: Sequence[tuple[int, int, int]],
    videos: dict[int, str],
    comments: dict[int, tuple[int, str, int]],
    users: Sequence[int] | None = None,
) -> Path:
    """The five files.

    Args:
        likes: (user, video, milliseconds after the start). An impression without a like stands before each.
        touches: (user, comment, seconds after the start).
        videos: caption by id.
        comments: (video, text, likes) by id.
        users: those of user_features.csv; default: all who act.
    """
    if users is None:
        users = sorted({user for user, *_ in (*likes, *touches)})
    impressions = []
    for user, video, time in likes:
        for like, delay in ((0, -1.0), (1, 0.0)):
            flags = [1, like, 0, 0, 0, 0, 0, 1]
            moment = float(START_MS + time + delay)
            impressions.append([user, video, 1230, moment, *flags, 5000.0, 18000.0, 0, 7])
    people = [
        [user, "full_active", 0, 1, 2, "(0,10]", 3, "[1,10)", 0, 99, "F", "18-23", *[0] * 19]
        for user in users
    ]
    interactions = [
        [user, comment, START_MS // 1000 + time, comments[comment][0] if comment in comments else 0, 1, 0]
        for user, comment, time in touches
    ]
    films = [
        [video, 900 + video, "NORMAL", "2023-09-30", text, 18000.0, "pets"] for video, text in videos.items()
    ]
    texts = [[comment, text, video, count, 0, 40] for comment, (video, text, count) in comments.items()]
    rows = {
        "user_video_inter.csv": impressions,
        "user_comment_inter.csv": interactions,
        "user_features.csv": people,
        "video_features.csv": films,
        "comment_features.csv": texts,
    }
    for name, content in rows.items():
        write_csv(folder / name, KUAICOMT_HEADERS[name], content)
    return folder


def small_kuaicomt(folder: Path) -> Path:
    """Three users who each like videos 1 to 6, ten seconds apart, and touch comments; every file is valid."""
    likes = [(user, video, 10_000 * video + user) for user in (7, 8, 1000) for video in range(1, 7)]
    touches = [(7, 11, 15), (7, 21, 25), (7, 22, 26), (7, 31, 35), (8, 21, 45), (8, 41, 55), (1000, 51, 12)]
    texts = {video: f"video {video}" for video in range(1, 9)}
    comments = {
        video * 10 + k: (video, f"comment {k} of {video}", 5 - k) for video in range(1, 9) for k in (1, 2, 3)
    }
    return write_kuaicomt(folder, likes=likes, touches=touches, videos=texts, comments=comments)


def write_movielens(
    folder: Path,
    ratings: Sequence[Sequence[Any]],
    movies: Sequence[Sequence[Any]],
    tags: Sequence[Sequence[Any]],
) -> Path:
    """ratings.csv, movies.csv and tags.csv of the layout since 20M."""
    write_csv(folder / "ratings.csv", "userId,movieId,rating,timestamp", ratings)
    write_csv(folder / "movies.csv", "movieId,title,genres", movies)
    write_csv(folder / "tags.csv", "userId,movieId,tag,timestamp", tags)
    return folder
