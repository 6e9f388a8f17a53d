"""The prepared dataset's rules once more, in plain Python with loops and sets: slow, short and independent."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

Like = tuple[int, int, int]
"""(user, video, time); the position in the list is the input row."""
Touch = tuple[int, int, int, int]
"""(user, comment, video, time)."""


def core(likes: Iterable[Like], user_core: int, video_core: int) -> tuple[set[int], set[int]]:
    """(users, videos) that the filter throws out, found by repeating until nothing falls."""
    pairs = {(user, video) for user, video, _ in likes}
    out_users: set[int] = set()
    out_videos: set[int] = set()
    while True:
        left = [(u, v) for u, v in pairs if u not in out_users and v not in out_videos]
        users, videos = Counter(u for u, _ in left), Counter(v for _, v in left)
        more_users = {u for u, _ in pairs if users[u] < user_core} - out_users
        more_videos = {v for _, v in pairs if videos[v] < video_core} - out_videos
        if not more_users and not more_videos:
            return out_users, out_videos
        out_users |= more_users
        out_videos |= more_videos


def histories(events: list[tuple[Any, ...]], item: int, time: int) -> dict[int, list[tuple[Any, ...]]]:
    """Events by user in (time, input row) order, the first of each item only."""
    by_user: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for _, event in sorted(enumerate(events), key=lambda pair: (pair[1][time], pair[0])):
        if all(event[item] != earlier[item] for earlier in by_user[event[0]]):
            by_user[event[0]].append(event)
    return by_user


def entries(touches: list[Touch]) -> list[list[Touch]]:
    """One user's touches in order, those in a row under the same video together."""
    found: list[list[Touch]] = []
    for touch in touches:
        if found and found[-1][-1][2] == touch[2]:
            found[-1].append(touch)
        else:
            found.append([touch])
    return found


def samples(
    likes: dict[int, list[Like]],
    touches: dict[int, list[Touch]],
    min_history: int,
    cuts: tuple[int, int] | None,
) -> dict[str, dict[str, list[tuple[Any, ...]]]]:
    """task -> split -> [(user, cut, liked videos before, touched comments before, video, positives)]."""
    found: dict[str, dict[str, list[tuple[Any, ...]]]] = {
        task: {split: [] for split in ("train", "val", "test")} for task in ("rec", "comm_rank")
    }
    for user in sorted(set(likes) | set(touches)):
        rec, rank = [], []
        for _, video, time in likes.get(user, []):
            row = (user, time, *_before(likes, touches, user, time), video, ())
            if len(row[2]) >= min_history:
                rec.append(row)
        for entry in entries(touches.get(user, [])):
            time = entry[0][3]
            row = (user, time, *_before(likes, touches, user, time), entry[0][2])
            if len(row[2]) >= min_history or row[3]:
                rank.append((*row, entry))
        for task, rows in (("rec", rec), ("comm_rank", rank)):
            for place, row in enumerate(rows):
                split = _split(len(rows) - place, row[1], cuts)
                end = None if cuts is None or split == "test" else cuts[("train", "val").index(split)]
                positives = tuple(touch[1] for touch in row[5] if end is None or touch[3] < end)
                found[task][split].append((*row[:5], positives))
    return found


def _before(
    likes: dict[int, list[Like]], touches: dict[int, list[Touch]], user: int, time: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (
        tuple(like[1] for like in likes.get(user, []) if like[2] < time),
        tuple(touch[1] for touch in touches.get(user, []) if touch[3] < time),
    )


def _split(from_end: int, time: int, cuts: tuple[int, int] | None) -> str:
    if cuts is None:
        return {1: "test", 2: "val"}.get(from_end, "train")
    return "train" if time < cuts[0] else "val" if time < cuts[1] else "test"
