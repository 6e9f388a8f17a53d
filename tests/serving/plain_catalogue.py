"""The moving catalogue in plain words: what is there follows, each time anew, from the bundle and the last change of
each id. Answers are computed step by step from text vectors."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lsvcr.schema import Task
from tests.serving.bundles import BOTH, World, comment_ids, unit, video_ids


@dataclass
class Last:
    """The last change of an id. `vector` None = the bundle's own."""

    kind: str
    id: Any
    bundle: str
    gone: bool = False
    text: str = ""
    vector: np.ndarray | None = None
    video: Any = None
    likes: int = 0


@dataclass
class Shelf:
    """A bundle as a test knows it."""

    name: str
    world: World
    text_ids: bool = False

    @property
    def videos(self) -> list[Any]:
        """Its video ids."""
        return video_ids(len(self.world.video_texts) - 1, self.text_ids)

    @property
    def comments(self) -> list[Any]:
        """Its comment ids."""
        return comment_ids(len(self.world.comment_texts) - 1, self.text_ids)

    def own(self, raw: Any) -> Any:
        """An id of another bundle in this one's kind; None where it has none."""
        if self.text_ids:
            return str(raw)
        return int(raw) if str(raw).isdigit() else None


@dataclass
class Thing:
    """A video or comment that has vectors: projected text and what comes with it, for each task."""

    text: str
    projected: dict[Task, np.ndarray]
    entry: dict[Task, np.ndarray]
    shown: dict[Task, np.ndarray]
    watched: dict[Task, np.ndarray]
    video: Any = None
    likes: int = 0
    order: int = 0


def new_thing(world: World, text: str, vector: np.ndarray, **more: Any) -> Thing:
    """What a text vector becomes."""
    projected = {task: vector @ world.models[task].projection for task in BOTH}
    return Thing(
        text,
        projected,
        {t: projected[t] @ world.models[t].merge[0] + world.models[t].bias for t in BOTH},
        {t: projected[t] @ world.models[t].merge[1] for t in BOTH},
        projected,
        **more,
    )


@dataclass
class Plain:
    """The changes made so far, and what they make of a bundle."""

    shelf: Shelf
    last: dict[tuple[str, str], Last] = field(default_factory=dict)

    def change(self, change: Last) -> None:
        """Note a change; `change.bundle` is filled in."""
        key = (change.kind, str(change.id))
        self.last.pop(key, None)
        change.bundle = self.shelf.name
        self.last[key] = change

    def base_video(self, raw: Any) -> Thing:
        """A video of the bundle as it is in the bundle."""
        world, row = self.shelf.world, self.shelf.videos.index(raw) + 1
        return Thing(
            f"video {row}",
            {t: world.titles(t)[row] for t in BOTH},
            {t: world.entries(t)[row] for t in BOTH},
            {},
            {t: world.watched(t)[row] for t in BOTH},
        )

    def base_comment(self, raw: Any) -> Thing:
        """A comment of the bundle as it is in the bundle."""
        world, row = self.shelf.world, self.shelf.comments.index(raw) + 1
        return Thing(
            f"comment {row}",
            {t: world.contents(t)[row] for t in BOTH},
            {},
            {t: world.shown(t)[row] for t in BOTH},
            {},
            video=self.shelf.videos[world.own[row] - 1],
            likes=int(world.likes[row]),
            order=row,
        )

    def in_force(self, kind: str) -> list[tuple[Any, Last]]:
        """Changes that count on this bundle, with their ids in its kind."""
        base = self.shelf.videos if kind == "video" else self.shelf.comments
        found = []
        for change in self.last.values():
            raw = self.shelf.own(change.id)
            if change.kind != kind or raw is None:
                continue
            if not change.gone and raw in base and change.bundle != self.shelf.name:
                continue
            if not change.gone and raw not in base and change.vector is None:
                continue
            found.append((raw, change))
        return found

    def view(self) -> "View":
        """What is there now."""
        world = self.shelf.world
        base_videos = {raw: self.base_video(raw) for raw in self.shelf.videos}
        videos = dict(base_videos)
        for raw, change in self.in_force("video"):
            if change.gone:
                videos.pop(raw, None)
            elif change.vector is None:
                videos[raw] = self.base_video(raw)
                videos[raw].text = change.text
            else:
                videos[raw] = new_thing(world, change.text, change.vector)
        base_comments = {raw: self.base_comment(raw) for raw in self.shelf.comments}
        comments = dict(base_comments)
        for order, (raw, change) in enumerate(self.in_force("comment"), start=len(base_comments) + 1):
            video = None if change.gone else self.shelf.own(change.video)
            comments.pop(raw, None)
            if change.gone or (video not in videos and video not in base_videos):
                continue
            if change.vector is None:
                thing = self.base_comment(raw)
                thing.text = change.text
            else:
                thing = new_thing(world, change.text, change.vector)
            thing.video, thing.likes, thing.order = video, change.likes, order
            comments[raw] = thing
        return View(world, videos, comments, base_videos, base_comments)

    def waiting(self, raw: Any) -> bool:
        """True for a comment that only waits for its video."""
        return any(own == raw and not change.gone for own, change in self.in_force("comment"))


@dataclass
class View:
    """What is there, and what histories may still name: all of the bundle."""

    world: World
    videos: dict[Any, Thing]
    comments: dict[Any, Thing]
    base_videos: dict[Any, Thing]
    base_comments: dict[Any, Thing]

    def of(self, video: Any) -> list[Any]:
        """Comments of a video, most liked first."""
        own = [raw for raw, comment in self.comments.items() if comment.video == video]
        return sorted(own, key=lambda raw: (-self.comments[raw].likes, self.comments[raw].order))

    def visible_comments(self) -> int:
        """Comments that can be ranked."""
        return sum(comment.video in self.videos for comment in self.comments.values())

    def user(self, task: Task, history: list[Any], said: list[Any], watched: Any = None) -> np.ndarray:
        """User vector of liked videos and of single comments."""
        model = self.world.models[task]
        vector = model.start.astype(np.float64)
        liked = [self._step(task, raw) for raw in history if self._video(raw) is not None]
        visits: list[tuple[Any, list[np.ndarray]]] = []
        for comment in self._known(said):
            if not visits or visits[-1][0] != comment.video:
                visits.append((comment.video, []))
            visits[-1][1].append(comment.shown[task])
        commented = [self._video(video).entry[task] + np.mean(own, axis=0) for video, own in visits]
        for steps, matrix in zip((liked, commented), model.encoder[:2], strict=True):
            if steps:
                vector = vector + np.mean(steps, axis=0) @ matrix
        if watched is not None:
            vector = vector + self.videos[watched].watched[task] @ model.encoder[2]
        return unit(vector[None])[0]

    def visited(self, said: list[Any]) -> set[Any]:
        """Videos of these comments."""
        return {comment.video for comment in self._known(said)}

    def _known(self, said: list[Any]) -> list[Thing]:
        found = [self.comments.get(raw) or self.base_comments.get(raw) for raw in said]
        return [comment for comment in found if comment is not None]

    def _video(self, raw: Any) -> Thing | None:
        return self.videos.get(raw) or self.base_videos.get(raw)

    def _step(self, task: Task, raw: Any) -> np.ndarray:
        own = self.of(raw)
        video = self._video(raw)
        assert video is not None
        return video.entry[task] + (self.comments[own[0]].shown[task] if own else 0)

    def recommended(self, history: list[Any], said: list[Any]) -> dict[Any, float]:
        """Score of every video."""
        user = self.user(Task.REC, history, said)
        return {raw: float(unit(v.watched[Task.REC][None])[0] @ user) for raw, v in self.videos.items()}

    def ranked(self, history: list[Any], said: list[Any], video: Any) -> dict[Any, float]:
        """Score of every comment of a video."""
        user = self.user(Task.COMM_RANK, history, said, video)
        items = {raw: unit(self.comments[raw].projected[Task.COMM_RANK][None])[0] for raw in self.of(video)}
        return {raw: float(item @ user) for raw, item in items.items()}
