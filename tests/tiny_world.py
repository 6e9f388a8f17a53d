"""A world of two dozen people in KuaiComt's five files, small enough to know by heart.

Topic t has the videos and comments whose number is t modulo TOPICS; person u likes topic u modulo TOPICS only.
So what comes next can be learned from the words, and every run takes seconds.
"""

import csv
from pathlib import Path

TOPICS = ("cats", "pasta", "chess", "hiking")
USERS, VIDEOS, COMMENTS_A_VIDEO, LIKES = 24, 32, 4, 7
START_MS = 1_696_000_000_000
HOUR_MS = 3_600_000
_MOODS = ("so funny", "very calm", "how sweet", "what a skill")


def title(video: int) -> str:
    """Title of a video; video 31 has none."""
    return "" if video == VIDEOS - 1 else f"{TOPICS[video % len(TOPICS)]} part {video // len(TOPICS)}"


def comment(number: int) -> str:
    """Text of a comment; comments of one mood under one topic are equal."""
    video, place = divmod(number, COMMENTS_A_VIDEO)
    return f"{_MOODS[place]}, these {TOPICS[video % len(TOPICS)]}"


def write_raw(folder: Path) -> Path:
    """Write the five files and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {u: [v for v in range(VIDEOS) if v % len(TOPICS) == u % len(TOPICS)] for u in range(USERS)}
    impressions, interactions = [], []
    for user, videos in own.items():
        for step in range(LIKES):
            video = videos[(step * 3 + user) % len(videos)]
            time = START_MS + step * HOUR_MS + user * 60_000
            impressions.append((user, video, time, 1, 0))
            # Even people react to comments, one or two of each video; odd ones to those of every third.
            if user % 2 == 0 or step % 3 == 0:
                for place in range(1 + step % 2):
                    number = video * COMMENTS_A_VIDEO + (user // 2 + place) % COMMENTS_A_VIDEO
                    interactions.append((user, number, (time + 1000 * (place + 1)) // 1000, video, 1, 0))
    _write(folder / "user_features.csv", ["user_id"], [[user] for user in range(USERS)])
    _write(
        folder / "video_features.csv",
        ["video_id", "author_id", "video_type", "upload_dt", "caption", "duration", "category"],
        [
            (v, v % 5, "NORMAL", "2023-09-01", title(v), 10_000.0, TOPICS[v % len(TOPICS)])
            for v in range(VIDEOS)
        ],
    )
    # The last two videos have no comments.
    numbers = range((VIDEOS - 2) * COMMENTS_A_VIDEO)
    _write(
        folder / "comment_features.csv",
        [
            "comment_id",
            "comment_content",
            "video_id",
            "comment_like_cnt",
            "comment_reply_out",
            "show_comment_cnt_td",
        ],
        [(n, comment(n), n // COMMENTS_A_VIDEO, 9 - n % COMMENTS_A_VIDEO, 0, 0) for n in numbers],
    )
    flags = ["is_click", "is_follow", "is_comment", "is_forward", "is_collect", "is_hate", "long_view"]
    _write(
        folder / "user_video_inter.csv",
        ["user_id", "video_id", "time_ms", "is_like", *flags],
        [(user, video, float(time), like, *[0] * len(flags)) for user, video, time, like, _ in impressions],
    )
    _write(
        folder / "user_comment_inter.csv",
        ["user_id", "comment_id", "time_stamp", "photo_id", "is_like", "is_reply"],
        [row for row in interactions if row[1] in numbers],
    )
    return folder


def _write(path: Path, header: list[str], rows: list) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)
