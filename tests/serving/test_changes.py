"""Random changes of the catalogue against a plain dictionary of what is there."""

from dataclasses import dataclass

import numpy as np
import pytest

from lsvcr.schema import Task
from lsvcr.serving import changes
from lsvcr.serving.encoder import Tower, TowerRows
from lsvcr.serving.errors import BadRequest, UnknownId
from lsvcr.serving.runtime import Recommender
from tests.serving.bundles import BOTH, World, comment_ids, make_bundle, unit, video_ids

N_VIDEOS, N_COMMENTS = 8, 20


@dataclass
class PlainVideo:
    """A video that is there; a vector a task."""

    title: str
    entry: dict
    watched: dict


@dataclass
class PlainComment:
    """A comment that is there; `order` breaks ties of likes."""

    video: int
    text: str
    likes: int
    order: int
    shown: dict
    item: np.ndarray


class Plain:
    """The catalogue as two dictionaries; `past` keeps what a history of the bundle's ids may still name."""

    def __init__(self, world: World) -> None:
        self.world, self.order = world, 0
        tables = {task: (world.entries(task), world.watched(task), world.shown(task)) for task in BOTH}
        items = world.items(Task.COMM_RANK)
        self.videos = {
            raw: PlainVideo(
                f"video {row}",
                {task: tables[task][0][row] for task in BOTH},
                {task: tables[task][1][row] for task in BOTH},
            )
            for row, raw in enumerate(video_ids(N_VIDEOS), start=1)
        }
        names = [0, *video_ids(N_VIDEOS)]
        self.comments = {
            raw: PlainComment(
                names[world.own[row]],
                f"comment {row}",
                int(world.likes[row]),
                row,
                {task: tables[task][2][row] for task in BOTH},
                items[row],
            )
            for row, raw in enumerate(comment_ids(N_COMMENTS), start=1)
        }
        self.order = N_COMMENTS
        self.past = dict(self.videos)

    def of(self, video: int) -> list[int]:
        """Comments of a video, most liked first."""
        own = [raw for raw, comment in self.comments.items() if comment.video == video]
        return sorted(own, key=lambda raw: (-self.comments[raw].likes, self.comments[raw].order))

    def user(self, task: Task, history: list[int], watched: int | None = None) -> np.ndarray:
        """User vector of a video history."""
        model = self.world.models[task]
        vector = model.start
        steps = []
        for raw in history:
            video = self.videos.get(raw) or self.past.get(raw)
            if video is not None:
                own = self.of(raw) if raw in self.videos else []
                steps.append(video.entry[task] + (self.comments[own[0]].shown[task] if own else 0))
        if steps:
            vector = vector + np.mean(steps, axis=0) @ model.encoder[0]
        if watched is not None:
            vector = vector + self.videos[watched].watched[task] @ model.encoder[2]
        return unit(vector[None])[0]

    def recommended(self, history: list[int]) -> dict[int, float]:
        """Score of every video."""
        user = self.user(Task.REC, history)
        return {
            raw: float(unit(video.watched[Task.REC][None])[0] @ user) for raw, video in self.videos.items()
        }


class Changer:
    """Makes the same random change to both."""

    def __init__(self, recommender: Recommender, plain: Plain, seed: int) -> None:
        self.recommender, self.plain = recommender, plain
        self.rng = np.random.default_rng(seed)
        self.towers = {task: Tower(files.tower) for task, files in recommender.bundle.parts.items()}

    def step(self) -> None:
        """One call with one to three changes of one kind."""
        kind = self.rng.integers(0, 4)
        count = int(self.rng.integers(1, 4))
        snapshot = self.recommender.snapshot
        make = [self.put_videos, self.put_comments, self.remove_videos, self.remove_comments][kind]
        self.recommender.publish(make(snapshot, count))

    def video_id(self) -> int:
        """One of the bundle's, or one of a few others."""
        return int(self.rng.choice([*video_ids(N_VIDEOS), 1, 2, 3]))

    def comment_id(self) -> int:
        """One of the bundle's, or one of a few others."""
        return int(self.rng.choice([*comment_ids(N_COMMENTS), 1, 2, 3, 4, 6]))

    def rows(self) -> dict[Task, TowerRows]:
        """A random text through both towers."""
        text = self.rng.standard_normal((1, self.plain.world.w)).astype(np.float32)
        return {
            task: TowerRows(*(field[0] for field in tower.rows(text))) for task, tower in self.towers.items()
        }

    def put_videos(self, snapshot, count):
        """New ones and old ones again."""
        news = []
        for number in range(count):
            new = changes.NewVideo(self.video_id(), f"new {number}", self.rows())
            news.append(new)
            self.plain.videos[new.id] = PlainVideo(
                new.title,
                {task: rows.entry for task, rows in new.rows.items()},
                {task: rows.projected for task, rows in new.rows.items()},
            )
        return changes.put_videos(snapshot, news)

    def put_comments(self, snapshot, count):
        """New ones and old ones again, which may change their video."""
        there = list(self.plain.videos)
        news = []
        for number in range(count if there else 0):
            video, likes = int(self.rng.choice(there)), int(self.rng.integers(0, 50))
            new = changes.NewComment(self.comment_id(), video, f"said {number}", likes, self.rows())
            news.append(new)
            self.plain.order += 1
            self.plain.comments[new.id] = PlainComment(
                video,
                new.text,
                likes,
                self.plain.order,
                {task: rows.shown for task, rows in new.rows.items()},
                unit(new.rows[Task.COMM_RANK].projected[None])[0],
            )
        return changes.put_comments(snapshot, news)

    def remove_videos(self, snapshot, count):
        """Some of them are not there."""
        ids = [self.video_id() for _ in range(count)]
        for raw in ids:
            if raw in self.plain.videos:
                for comment in self.plain.of(raw):
                    del self.plain.comments[comment]
                del self.plain.videos[raw]
        return changes.remove_videos(snapshot, ids)

    def remove_comments(self, snapshot, count):
        """Some of them are not there."""
        ids = [self.comment_id() for _ in range(count)]
        for raw in ids:
            self.plain.comments.pop(raw, None)
        return changes.remove_comments(snapshot, ids)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "b"
    return path, make_bundle(path, n_videos=N_VIDEOS, n_comments=N_COMMENTS, d=8, w=6, seed=5)


@pytest.mark.parametrize("seed", range(6))
def test_answers_follow_every_change(bundle, seed):
    path, world = bundle
    recommender = Recommender.load(path)
    plain = Plain(world)
    changer = Changer(recommender, plain, seed)
    for _ in range(40):
        changer.step()
        assert_same(recommender, plain, [changer.video_id() for _ in range(3)])


def assert_same(recommender: Recommender, plain: Plain, history: list[int]) -> None:
    """All videos in order with scores and titles, all comments of a video likewise."""
    answer = recommender.recommend(history, k=100, exclude_seen=False)
    scores = plain.recommended(history)
    assert sorted(item.id for item in answer.items) == sorted(scores)
    for item in answer.items:
        assert item.title == plain.videos[item.id].title
        assert abs(item.score - scores[item.id]) < 1e-5
    assert [i.score for i in answer.items] == sorted((i.score for i in answer.items), reverse=True)
    chosen = recommender.recommend(history, candidates=list(plain.past), exclude_seen=False)
    assert {item.id for item in chosen.items} == set(plain.past) & set(plain.videos)
    for video in plain.past:
        if video in plain.videos:
            assert_video(recommender, plain, history, video)
        else:
            with pytest.raises(UnknownId):
                recommender.video(video)
    assert recommender.snapshot.videos.n_live == len(plain.videos)
    assert recommender.snapshot.comments.n_live == len(plain.comments)


def assert_video(recommender: Recommender, plain: Plain, history: list[int], video: int) -> None:
    """What is shown of a video, and its comments ranked."""
    own = plain.of(video)
    info = recommender.video(video, limit=100)
    assert [(c.id, c.text, c.likes) for c in info.comments] == [
        (raw, plain.comments[raw].text, plain.comments[raw].likes) for raw in own
    ]
    user = plain.user(Task.COMM_RANK, history, video)
    ranked = recommender.rank_comments(history, [], video)
    assert sorted(item.id for item in ranked.items) == sorted(own)
    for item in ranked.items:
        assert abs(item.score - float(plain.comments[item.id].item @ user)) < 1e-5


def test_a_snapshot_that_a_request_holds_does_not_change(bundle):
    path, world = bundle
    recommender = Recommender.load(path)
    before = recommender.snapshot
    answer = recommender.recommend([1007])
    changer = Changer(recommender, Plain(world), 1)
    for _ in range(10):
        changer.step()
    assert recommender.recommend([1007]) != answer
    recommender.publish(before)
    assert recommender.recommend([1007]) == answer


def test_stored_users_see_a_video_under_its_new_row(bundle):
    path, world = bundle
    recommender = Recommender.load(path)
    liked = recommender.histories(101)[0][0]
    changer = Changer(recommender, Plain(world), 2)
    new = changes.NewVideo(liked, "again", changer.rows())
    recommender.publish(changes.put_videos(recommender.snapshot, [new]))
    videos, visits = recommender.histories(101)
    assert videos[0] == liked
    user = recommender.recommend_user(101, k=100)
    assert liked not in [item.id for item in user.items]
    given = recommender.recommend(videos, visits, k=100)
    assert [i.score for i in given.items if i.id in {j.id for j in user.items}] == [
        i.score for i in user.items
    ]


def test_what_cannot_be_put(bundle):
    path, world = bundle
    snapshot = Recommender.load(path).snapshot
    with pytest.raises(UnknownId, match="no video 77 in this bundle"):
        changes.put_comments(snapshot, [changes.NewComment(1, 77, "", 0, {})])
    with pytest.raises(BadRequest, match="the ids of this bundle are whole numbers, not 'v'"):
        changes.put_videos(snapshot, [changes.NewVideo("v", "", {})])
    assert changes.put_videos(snapshot, []) is snapshot
    assert changes.remove_videos(snapshot, [77]) is snapshot
    assert changes.remove_comments(snapshot, [77]) is snapshot
