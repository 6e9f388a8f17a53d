"""Random changes, restarts, compactions, full disks and new bundles, against the plain catalogue."""

import errno
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from lsvcr.serving.errors import BadRequest, UnknownId
from lsvcr.serving.journal import NotStored
from lsvcr.serving.runtime import Recommender
from tests.serving.bundles import make_bundle
from tests.serving.plain_catalogue import Last, Plain, Shelf

WIDTH = 6
VECTORS = np.random.default_rng(3).standard_normal((40, WIDTH)).astype(np.float32)
SIZES = {"a": (3, 7, False), "b": (4, 9, False), "text": (2, 4, True)}

vectors = st.none() | st.integers(0, len(VECTORS) - 1)
picks = st.integers(0, 10**6)
asked = st.fixed_dictionaries(
    {
        "what": st.sampled_from(["put_video", "put_comment", "remove_video", "remove_comment"]),
        "id": picks,
        "video": picks,
        "text": st.text(max_size=3),
        "vector": vectors,
        "likes": st.none() | st.integers(0, 60),
    }
)
BUNDLES: dict[str, Path] = {}
SHELVES: dict[str, Shelf] = {}


def make_bundles() -> None:
    """Once a process: three bundles of one text width, the first two with ids in common."""
    root = Path(tempfile.mkdtemp(prefix="lsvcr-bundles-"))
    for seed, (name, (n_videos, n_comments, text_ids)) in enumerate(SIZES.items()):
        world = make_bundle(
            root / name,
            n_videos=n_videos,
            n_comments=n_comments,
            n_users=0,
            d=5,
            w=WIDTH,
            seed=seed,
            text_ids=text_ids,
        )
        BUNDLES[name], SHELVES[name] = root / name, Shelf(name, world, text_ids)


class Machine(RuleBasedStateMachine):
    """One catalogue and its plain twin."""

    def __init__(self) -> None:
        super().__init__()
        self.state = Path(tempfile.mkdtemp(prefix="lsvcr-state-"))
        self.plain = Plain(SHELVES["a"])
        self.recommender = Recommender.load(BUNDLES["a"], state=self.state)

    def teardown(self) -> None:
        self.recommender.catalogue.close()
        shutil.rmtree(self.state)

    def video_id(self, pick):
        few = ["1", "x"] if self.plain.shelf.text_ids else [1, "2"]
        ids = [*self.plain.shelf.videos, *few]
        return ids[pick % len(ids)]

    def comment_id(self, pick):
        few = ["7"]
        ids = [*self.plain.shelf.comments, *few]
        return ids[pick % len(ids)]

    def expect(self, ask):
        """What the change is to return or raise, after noting it in the plain catalogue."""
        view, own = self.plain.view(), self.plain.shelf.own
        what, vector = ask["what"], None if ask["vector"] is None else VECTORS[ask["vector"]]
        kind = what.split("_")[1]
        raw = own(self.video_id(ask["id"]) if kind == "video" else self.comment_id(ask["id"]))
        there = raw in (view.videos if kind == "video" else view.comments)
        if what.startswith("remove"):
            if not there and not (kind == "comment" and self.plain.waiting(raw)):
                return UnknownId
            self.plain.change(Last(kind, raw, "", gone=True))
            return None
        if kind == "comment" and own(self.video_id(ask["video"])) not in view.videos:
            return UnknownId
        if vector is None and not there:
            return BadRequest
        before = next((last for own_id, last in self.plain.in_force(kind) if own_id == raw), None)
        if vector is None and before is not None:
            vector = before.vector
        change = Last(kind, raw, "", text=ask["text"], vector=vector)
        if kind == "comment":
            old = view.comments[raw].likes if there else 0
            change.video, change.likes = own(self.video_id(ask["video"])), ask["likes"]
            change.likes = old if change.likes is None else change.likes
        self.plain.change(change)
        return not there

    def call(self, ask):
        """Make the change; what it returned, or the class of what it raised."""
        catalogue, what = self.recommender.catalogue, ask["what"]
        vector = None if ask["vector"] is None else VECTORS[ask["vector"]].tolist()
        try:
            if what == "put_video":
                return catalogue.put_video(self.video_id(ask["id"]), ask["text"], vector)
            if what == "put_comment":
                raw, video = self.comment_id(ask["id"]), self.video_id(ask["video"])
                return catalogue.put_comment(raw, video, ask["text"], vector, ask["likes"])
            if what == "remove_video":
                return catalogue.remove_video(self.video_id(ask["id"]))
            return catalogue.remove_comment(self.comment_id(ask["id"]))
        except (BadRequest, UnknownId, NotStored) as error:
            return type(error)

    @rule(ask=asked)
    def change(self, ask):
        assert self.call(ask) == self.expect(ask)

    @rule(asks=st.lists(asked, min_size=2, max_size=6))
    def changes_that_wait_for_each_other(self, asks):
        """They come to the queue one after the other while the turn is taken, and are one batch."""
        together = self.recommender.catalogue._together
        results = {}
        threads = []
        with together.turn:
            for place, ask in enumerate(asks):
                waiting = len(together._waiting)
                thread = threading.Thread(
                    target=lambda p, a: results.update({p: self.call(a)}), args=(place, ask)
                )
                thread.start()
                threads.append(thread)
                while thread.is_alive() and len(together._waiting) == waiting:
                    time.sleep(0.0005)
        for thread in threads:
            thread.join()
        assert [results[place] for place in range(len(asks))] == [self.expect(ask) for ask in asks]

    @rule(ask=asked, call=st.sampled_from(["pwrite", "fsync"]))
    def disk_is_full(self, ask, call):
        """`os.pwrite` or `os.fsync` raises ENOSPC."""
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        before = dict(self.plain.last)
        with mock.patch(f"lsvcr.serving.journal.os.{call}", side_effect=full):
            found = self.call(ask)
        expected = self.expect(ask)
        assert found == (NotStored if expected in (True, False, None) else expected)
        self.plain.last = before

    @rule()
    def restart(self):
        self.recommender.catalogue.close()
        self.recommender = Recommender.load(BUNDLES[self.plain.shelf.name], state=self.state)

    @rule()
    def compact(self):
        self.recommender.catalogue._journal.compact()

    @rule()
    def make_rows_anew(self):
        self.recommender.catalogue._take(self.recommender.catalogue._journal)

    @rule(name=st.sampled_from(sorted(SIZES)), restart=st.booleans())
    def another_bundle(self, name, restart):
        old = self.recommender
        if restart:
            old.catalogue.close()
            self.recommender = Recommender.load(BUNDLES[name], state=self.state)
        else:
            self.recommender = Recommender.load(BUNDLES[name])
            self.recommender.catalogue.take_over(old.catalogue)
        self.plain.shelf = SHELVES[name]

    @invariant()
    def answers_are_those_of_the_plain_catalogue(self):
        view, recommender = self.plain.view(), self.recommender
        shelf = self.plain.shelf
        history = [*shelf.videos[:2], *(self.video_id(len(shelf.videos) + more) for more in (0, 1))]
        said = [*shelf.comments[:4], self.comment_id(len(shelf.comments))]
        history, said = [shelf.own(raw) for raw in history], [shelf.own(raw) for raw in said]
        real_history = [raw for raw in history if raw is not None]
        found = recommender.recommend(real_history, said, k=100, exclude_seen=False)
        expected = view.recommended(real_history, said)
        assert {item.id: item.title for item in found.items} == {r: v.text for r, v in view.videos.items()}
        assert {item.id: item.score for item in found.items} == pytest.approx(expected, abs=2e-5)
        assert found.unknown.videos == [raw for raw in real_history if view._video(raw) is None]
        few = recommender.recommend(real_history, said, k=2)
        seen = {*real_history, *view.visited(said)}
        rest = [item for item in found.items if item.id not in seen]
        assert [item.score for item in few.items] == [item.score for item in rest[:2]]
        for video in [*shelf.videos, *{change.id for change in self.plain.last.values()}]:
            self.compare_video(view, shelf.own(video), real_history, said)
        snapshot = recommender.snapshot
        assert (snapshot.videos.n_live, snapshot.comments.n_live) == (
            len(view.videos),
            view.visible_comments(),
        )
        every = [*shelf.comments, *(raw for raw in view.comments if raw not in shelf.comments)]
        live = {raw for raw in every if raw in view.comments and view.comments[raw].video in view.videos}
        assert {raw for raw in every if snapshot.comments.find_live([raw])[0] > 0} == live

    def compare_video(self, view, video, history, said):
        if video not in view.videos:
            with pytest.raises(UnknownId):
                self.recommender.rank_comments(history, said, "none" if video is None else video)
            return
        info = self.recommender.video(video, limit=100)
        own = view.of(video)
        shown = [(comment.id, comment.text, comment.likes) for comment in info.comments]
        assert shown == [(raw, view.comments[raw].text, view.comments[raw].likes) for raw in own]
        ranking = self.recommender.rank_comments(history, said, video)
        expected = view.ranked(history, said, video)
        assert {item.id: item.score for item in ranking.items} == pytest.approx(expected, abs=2e-5)


def test_the_catalogue_is_the_plain_catalogue():
    make_bundles()
    try:
        run_state_machine_as_test(
            Machine, settings=settings(max_examples=15, stateful_step_count=20, deadline=None)
        )
    finally:
        shutil.rmtree(BUNDLES["a"].parent)
