"""Miniatures of the official format, and what a prepared dataset says of its samples in the same words."""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lsvcr.data.store import Dataset
from lsvcr.schema import Split, Task

Record = tuple[str, tuple[str, ...], tuple[tuple[str, tuple[str, ...]], ...], str, tuple[str, ...]]
"""(user, video history, entries of the comment history, video, positives); ids as strings."""

VIDEOS = [f"v{n}" for n in range(1, 7)]
COMMENTS = {f"c{n}": VIDEOS[n % 5] for n in range(12)}
"""The video of each comment; the last video has none."""

TABLES = [(task, split) for task in Task for split in Split]


def line(
    user: Any,
    videos: Sequence[Any],
    entries: Sequence[tuple[Any, Sequence[Any]]],
    video: Any,
    *positives: Any,
) -> dict:
    """A line of a sample file; with positives one of comm_rank."""
    record = {
        "user_id": user,
        "target_photo": video,
        "photo_inter_his": list(videos),
        "comment_inter_his": [[seen for seen, _ in entries], [list(own) for _, own in entries]],
    }
    return record | ({"pos_comments": list(positives)} if positives else {})


def record_of(line: Mapping[str, Any]) -> Record:
    """A line as it should come back."""
    watched, groups = line["comment_inter_his"] or ([], [])
    entries = tuple((str(video), tuple(map(str, own))) for video, own in zip(watched, groups, strict=True))
    return (
        str(line["user_id"]),
        tuple(map(str, line["photo_inter_his"])),
        entries,
        str(line["target_photo"]),
        tuple(map(str, line.get("pos_comments", ()))),
    )


def small_lines() -> dict[tuple[Task, Split], list[dict]]:
    """Two people; the first one's last comment entry is cut through by the last like."""
    one, two = ("v1", ["c0", "c5"]), ("v2", ["c1"])
    return {
        (Task.REC, Split.TRAIN): [line("a", ["v1"], [one], "v2"), line(8, ["v6"], [], "v5")],
        (Task.REC, Split.VAL): [line("a", ["v1", "v2"], [one, two], "v3"), line(8, ["v6", "v5"], [], "v4")],
        (Task.REC, Split.TEST): [
            line("a", ["v1", "v2", "v3"], [one, two, ("v3", ["c2"])], "v4"),
            line(8, ["v6", "v5", "v4"], [], "v1"),
        ],
        (Task.COMM_RANK, Split.TRAIN): [line("a", ["v1"], [], "v1", "c0", "c5")],
        (Task.COMM_RANK, Split.VAL): [line("a", ["v1", "v2"], [one], "v2", "c1")],
        (Task.COMM_RANK, Split.TEST): [line("a", ["v1", "v2", "v3"], [one, two], "v3", "c2", "c7")],
    }


def write_official(
    folder: Path, lines: Mapping[tuple[Task, Split], Sequence[dict]], protocol: int = 4
) -> Path:
    """The ten files around `lines`, as the reference writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {video: [c for c, of in COMMENTS.items() if of == video][::-1] for video in VIDEOS}
    photos = {video: {"title": f"title of {video}", "comment_list": own[video]} for video in VIDEOS}
    texts = {comment: {"content": f"text of {comment}"} for comment in COMMENTS}
    (folder / "all_photos.pkl").write_bytes(pickle.dumps(["[PAD]", *VIDEOS], protocol))
    (folder / "all_comments.pkl").write_bytes(pickle.dumps(["[PAD]", *COMMENTS], protocol))
    (folder / "photo.json").write_text(json.dumps(photos), encoding="utf-8")
    (folder / "comment.json").write_text(json.dumps(texts), encoding="utf-8")
    for task, split in TABLES:
        content = "".join(json.dumps(record) + "\n" for record in lines.get((task, split), []))
        (folder / f"{task.value}.{split.value}.json").write_text(content, encoding="utf-8")
    return folder


def records(dataset: Dataset, task: Task, split: Split) -> list[Record]:
    """All samples of a table in raw ids, row by row; pseudo-users (`USER#2`) under their own names."""
    users, videos, comments = (
        [None, *map(str, dataset.raw_ids(kind))] for kind in ("users", "videos", "comments")
    )
    samples, events, touched = dataset.samples(task, split), dataset.video_events, dataset.comment_events
    found = []
    for row, (user, _, video_end, comment_end, video) in enumerate(samples.rows.tolist()):
        history = events.items[events.offsets[user] : video_end]
        entries: list[tuple[str, list[str]]] = []
        last = None
        for event in range(int(touched.offsets[user]), comment_end):
            if touched.groups[event] != last:
                entries.append((videos[touched.videos[event]], []))
                last = touched.groups[event]
            entries[-1][1].append(comments[touched.items[event]])
        positives = () if samples.positives is None else samples.positives.row(row).tolist()
        found.append(
            (
                users[user],
                tuple(videos[item] for item in history.tolist()),
                tuple((seen, tuple(own)) for seen, own in entries),
                videos[video],
                tuple(comments[item] for item in positives),
            )
        )
    return found


def without_number(record: Record) -> Record:
    """The record under the name of the person behind a pseudo-user."""
    return (record[0].split("#")[0], *record[1:])
