"""The moving catalogue: what a change means, what is refused, and what others see meanwhile."""

import base64
import math
import random
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lsvcr.schema import Task
from lsvcr.serving.bundle import open_bundle
from lsvcr.serving.catalogue import Catalogue
from lsvcr.serving.errors import BadRequest, BundleError, UnknownId
from lsvcr.serving.journal import NotStored
from lsvcr.serving.runtime import Recommender
from lsvcr.serving.text_encoder import TextEncoder
from lsvcr.utils.errors import UserError
from tests.serving.bundles import World, make_bundle, unit

W = 6
RNG = np.random.default_rng(1)
VECTORS = RNG.standard_normal((100, W)).astype(np.float32)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Bundles `a` and `b` of one text width with ids in common, `wide` of another; `world` is what `a` is made of."""
    root = tmp_path_factory.mktemp("bundles")
    world = make_bundle(root / "a", n_videos=8, n_comments=20, d=5, w=W, seed=1)
    make_bundle(root / "b", n_videos=10, n_comments=20, d=5, w=W, seed=2)
    make_bundle(root / "wide", n_videos=8, n_comments=20, d=5, w=W + 1, seed=3)
    return root, world


@pytest.fixture
def load(bundles, tmp_path):
    """Opens a bundle with the test's state folder, after closing what was open."""
    opened = []

    def opener(name="a", state=tmp_path / "state"):
        while opened:
            opened.pop().catalogue.close()
        opened.append(Recommender.load(bundles[0] / name, state=state))
        return opened[-1]

    yield opener
    while opened:
        opened.pop().catalogue.close()


def scores(recommender, history=()):
    found = recommender.recommend(list(history), k=1000, exclude_seen=False)
    return {item.id: item.score for item in found.items}


def own_comments(recommender, video):
    return [comment.id for comment in recommender.video(video, limit=100).comments]


# What a change means


def test_another_title_without_a_vector_leaves_the_scores(load):
    recommender = load()
    before = scores(recommender)
    assert recommender.catalogue.put_video(1007, "retitled") is False
    assert scores(recommender) == pytest.approx(before, abs=1e-6) and recommender.title(1007) == "retitled"
    recommender.catalogue.put_video(1007, "with vector", VECTORS[0])
    moved = scores(recommender)
    assert abs(moved[1007] - before[1007]) > 1e-3
    recommender.catalogue.put_video(1007, "retitled again")
    assert scores(recommender) == pytest.approx(moved, abs=1e-6)
    assert scores(load()) == pytest.approx(moved, abs=1e-6) and recommender.title(1007) == "retitled again"


def test_a_vector_for_a_video_of_the_bundle_drops_the_part_of_its_id(load, bundles):
    recommender, world = load(), bundles[1]
    before = scores(recommender)[1007]
    recommender.catalogue.put_video(1007, "as it was", world.video_texts[1])
    user = world.user(Task.REC, [], [])
    text = world.titles(Task.REC)[1]
    assert before == pytest.approx(
        float(unit((text + world.models[Task.REC].ids[1])[None])[0] @ user), abs=1e-5
    )
    assert scores(recommender)[1007] == pytest.approx(float(unit(text[None])[0] @ user), abs=1e-5)


def test_a_removed_video_is_a_new_one_when_it_is_put_again_and_has_its_comments_back(load):
    recommender = load()
    catalogue = recommender.catalogue
    own = own_comments(recommender, 1007)
    catalogue.put_comment(3, 1007, "one more", VECTORS[0], likes=1000)
    catalogue.remove_video(1007)
    assert 1007 not in scores(recommender) and recommender.title(1007) is None
    assert recommender.recommend([1007], exclude=[1014]).unknown.videos == []  # it still says something
    assert recommender.recommend(exclude=[1014, 1007]).unknown.videos == [1007]
    with pytest.raises(UnknownId):
        recommender.rank_comments([], [], 1007)
    other = recommender.rank_comments([], [], 1014, comments=[3, *own])
    assert other.items == [] and other.unknown.comments == [3, *own]
    with pytest.raises(UnknownId, match="no video 1007"):
        catalogue.remove_video(1007)
    with pytest.raises(UnknownId, match="no video 1007 .* put it before its comments"):
        catalogue.put_comment(4, 1007, "", VECTORS[0])
    with pytest.raises(BadRequest, match="video 1007 is new, .* no text encoder"):
        catalogue.put_video(1007, "again")
    catalogue.remove_comment(own[0])  # out of sight, but there
    assert catalogue.put_video("1007", "again", VECTORS[1]) is True
    assert own_comments(recommender, 1007) == [3, *own[1:]] == own_comments(load(), 1007)


def test_comments_of_a_video_that_only_changes_know_of_wait_for_it(load):
    recommender = load()
    for raw, likes in ((1, 5), (2, 9), (3, 5)):
        if raw == 1:
            recommender.catalogue.put_video(7, "mine", VECTORS[0])
        recommender.catalogue.put_comment(raw, 7, f"says {raw}", VECTORS[raw], likes)
    assert own_comments(recommender, 7) == [2, 1, 3]
    recommender.catalogue.remove_video(7)
    assert recommender.recommend([7], [1]).unknown.videos == [7]
    assert recommender.recommend([7], [1]).unknown.comments == [1]
    recommender = load()
    recommender.catalogue.remove_comment(2)  # it is not there, but would come back
    recommender.catalogue.put_video(7, "back", VECTORS[9])
    assert own_comments(recommender, 7) == [1, 3]
    recommender = load()
    assert own_comments(recommender, 7) == [1, 3]
    with pytest.raises(UnknownId, match="no comment 2"):
        recommender.catalogue.remove_comment(2)


def test_a_comment_that_moves_and_whose_new_video_goes_is_gone(load):
    recommender = load()
    own = own_comments(recommender, 1007)
    recommender.catalogue.put_video(7, "mine", VECTORS[0])
    recommender.catalogue.put_comment(own[0], 7, "moved")
    assert own_comments(recommender, 7) == [own[0]] and own_comments(recommender, 1007) == own[1:]
    recommender.catalogue.remove_video(7)
    for _ in range(2):
        assert own_comments(recommender, 1007) == own[1:]
        recommender = load()


def test_comments_of_a_removed_video_stay_out_of_sight_after_a_restart(load):
    recommender = load()
    recommender.catalogue.put_comment(3, 1007, "of 1007", VECTORS[0])
    recommender.catalogue.remove_video(1007)
    for _ in range(2):
        assert recommender.rank_comments([], [], 1014, comments=[3]).items == []
        recommender = load()


def test_likes_order_the_comments_and_stay_where_none_are_given(load):
    recommender = load()
    catalogue = recommender.catalogue
    catalogue.put_video(7, "mine", VECTORS[0])
    for raw, likes in ((1, 5), (2, None), (3, 5), (4, 2**31 - 1)):
        assert catalogue.put_comment(raw, 7, "", VECTORS[raw], likes) is True
    assert own_comments(recommender, 7) == [4, 1, 3, 2]
    assert catalogue.put_comment(1, 7, "other text") is False  # behind 3 now: it was put later
    assert [c.likes for c in recommender.video(7).comments] == [2**31 - 1, 5, 5, 0]
    assert own_comments(recommender, 7) == [4, 3, 1, 2] == own_comments(load(), 7)


def test_the_most_liked_comment_counts_in_histories_at_once(load):
    recommender = load()
    before = scores(recommender, [1007])
    recommender.catalogue.put_comment(3, 1007, "liked by all", VECTORS[0], likes=10**6)
    during = scores(recommender, [1007])
    assert max(abs(before[v] - during[v]) for v in before) > 1e-3
    recommender.catalogue.remove_comment(3)
    assert scores(recommender, [1007]) == pytest.approx(before, abs=1e-6)


def test_a_text_encoder_gives_a_new_title_a_new_vector_and_the_same_title_none(bundles):
    bundle, asked = open_bundle(bundles[0] / "a"), []

    def encode(texts):
        asked.extend(texts)
        return np.stack([VECTORS[len(text)] for text in texts])

    published = []
    catalogue = Catalogue(bundle, published.append, encode=encode)
    row = lambda raw: int(published[-1].videos.find_live([raw])[0])  # noqa: E731
    first = published[-1].items(Task.REC, np.array([1]))
    catalogue.put_video(1007, "video 1")  # as it is called
    np.testing.assert_allclose(published[-1].items(Task.REC, np.array([row(1007)])), first, atol=1e-6)
    catalogue.put_video(1007, "another")
    expected = unit((VECTORS[7] @ bundles[1].models[Task.REC].projection)[None])
    np.testing.assert_allclose(published[-1].items(Task.REC, np.array([row(1007)])), expected, atol=1e-5)
    catalogue.put_video(1007, "another", VECTORS[50])
    catalogue.put_video(1007, "another")  # the vector that was given stays
    expected = unit((VECTORS[50] @ bundles[1].models[Task.REC].projection)[None])
    np.testing.assert_allclose(published[-1].items(Task.REC, np.array([row(1007)])), expected, atol=1e-5)
    assert catalogue.put_video(2, "new one") and catalogue.put_comment(3, 2, "hm")
    assert asked == ["video 1", "another", "another", "new one", "hm"]


def encoder_files(width):
    rng = np.random.default_rng(5)
    return {
        "text_encoder/weights.npy": rng.standard_normal((64, width)).astype(np.float16),
        "text_encoder/rarity.npy": np.ones(64, dtype=np.float32),
        "text_encoder/mean.npy": rng.standard_normal(width).astype(np.float32),
    }


def test_a_bundle_with_a_text_encoder_needs_no_vectors(tmp_path):
    world = make_bundle(tmp_path / "b", n_videos=4, n_comments=6, d=5, w=W, files=encoder_files(W))
    recommender = Recommender.load(tmp_path / "b")
    assert recommender.catalogue.put_video(7, "two cats") and recommender.catalogue.put_comment(3, 7, "ha")
    encoder = TextEncoder.open(tmp_path / "b")
    assert encoder is not None
    item = unit(encoder.encode(["two cats"]) @ world.models[Task.REC].projection)[0]
    assert scores(recommender)[7] == pytest.approx(float(item @ world.user(Task.REC, [], [])), abs=1e-5)
    make_bundle(tmp_path / "b", n_videos=4, n_comments=6, d=5, w=W, files=encoder_files(W + 1))
    with pytest.raises(BundleError, match="its text encoder makes 7 numbers, its towers read 6"):
        Recommender.load(tmp_path / "b")


def test_a_model_without_text_takes_titles_and_removals_but_nothing_new(tmp_path, monkeypatch):
    part = World.part
    monkeypatch.setattr(World, "part", lambda world, task: replace(part(world, task), tower=None))
    make_bundle(tmp_path / "b", n_videos=4, n_comments=6, d=5, w=W)
    recommender = Recommender.load(tmp_path / "b")
    before = scores(recommender)
    recommender.catalogue.put_video(1007, "retitled")
    recommender.catalogue.remove_video(1014)
    assert scores(recommender) == pytest.approx(
        {raw: s for raw, s in before.items() if raw != 1014}, abs=1e-6
    )
    for vector in (None, VECTORS[0]):
        with pytest.raises(BadRequest, match="looks at no text, so it has no place for new videos"):
            recommender.catalogue.put_video(7, "new", vector)


def test_stored_users_keep_a_video_that_is_put_again(tmp_path):
    make_bundle(tmp_path / "b", n_users=3, w=W)
    recommender = Recommender.load(tmp_path / "b")
    videos, visits = recommender.histories(101)
    recommender.catalogue.put_video(videos[0], "again", VECTORS[0])
    recommender.catalogue.put_comment(visits[0]["comments"][0], visits[0]["video"], "again", VECTORS[1])
    assert recommender.histories(101) == (videos, visits)
    stored = recommender.recommend_user(101, k=100)
    assert videos[0] not in {item.id for item in stored.items}
    given = {item.id: item.score for item in recommender.recommend(videos, visits, k=100).items}
    assert {item.id: item.score for item in stored.items} == pytest.approx(
        {item.id: given[item.id] for item in stored.items}, abs=1e-6
    )


def test_a_snapshot_that_a_request_holds_does_not_change(load):
    recommender = load()
    held, before = recommender.snapshot, recommender.recommend([1007], k=100)
    for number in range(40):
        recommender.catalogue.put_video(1007 + 7 * (number % 3), str(number), VECTORS[number])
        recommender.catalogue.put_comment(number % 5, 1014, str(number), VECTORS[number])
        if number % 4 == 3:
            recommender.catalogue.remove_video(1007)
    after = recommender.recommend([1007], k=100)
    recommender.publish(held)
    assert recommender.recommend([1007], k=100) == before != after


# What is refused


@pytest.mark.parametrize(
    "vector, told",
    [
        ([math.nan] * W, "not finite"),
        ([math.inf] * W, "not finite"),
        ([1e300] * W, "not finite in single precision"),
        ([3e38] * W, "so large that the model overflows"),
        ([0.5] * (W - 1), "has 6 numbers, not 5"),
        ([0.5] * (W + 1), "has 6 numbers, not 7"),
        ([], "has 6 numbers, not 0"),
        ([[0.5] * W], "list of numbers"),
        ([0.5, [1], 1, 1, 1, 1], "list of numbers"),
        (["1"] * W, "list of numbers"),
        ([None] * W, "list of numbers"),
        ([True] * W, "list of numbers"),
        ("abc", "list of numbers"),
        (5, "list of numbers"),
        ({"a": 1}, "list of numbers"),
        ([10**400] * W, "list of numbers"),
    ],
)
def test_vectors_that_cannot_be(load, vector, told):
    recommender = load()
    before, lines = scores(recommender), recommender.catalogue.stats()["journal_lines"]
    with pytest.raises(BadRequest, match=told):
        recommender.catalogue.put_video(7, "title", vector)
    with pytest.raises(BadRequest, match=told):
        recommender.catalogue.put_comment(7, 1007, "text", vector)
    assert scores(recommender) == before and recommender.catalogue.stats()["journal_lines"] == lines


def test_zeros_are_a_text_that_says_nothing(load):
    recommender = load()
    recommender.catalogue.put_video(7, "", [0] * W)
    assert scores(recommender)[7] == 0


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda c: c.put_video("seven", "t", VECTORS[0]), "whole numbers of 64 bits, not 'seven'"),
        (lambda c: c.put_video(2**63, "t", VECTORS[0]), "whole numbers of 64 bits"),
        (lambda c: c.put_video(True, "t", VECTORS[0]), "an id is a whole number or a text"),
        (lambda c: c.put_video(None, "t", VECTORS[0]), "an id is a whole number or a text"),
        (lambda c: c.put_video(7, None, VECTORS[0]), "title is a text, not NoneType"),
        (lambda c: c.put_video(7, "\ud800", VECTORS[0]), "title has half of a surrogate pair"),
        (lambda c: c.put_comment(7, 1007, b"t", VECTORS[0]), "text is a text, not bytes"),
        (lambda c: c.put_comment(7, 1.5, "t", VECTORS[0]), "an id is a whole number or a text"),
        (
            lambda c: c.put_comment(7, 1007, "t", VECTORS[0], -1),
            "likes is a whole number from 0 to 2147483647",
        ),
        (lambda c: c.put_comment(7, 1007, "t", VECTORS[0], 2**31), "likes is a whole number from 0"),
        (lambda c: c.put_comment(7, 1007, "t", VECTORS[0], True), "likes is a whole number from 0"),
        (lambda c: c.put_comment(7, 1007, "t", VECTORS[0], 1.0), "likes is a whole number from 0"),
        (lambda c: c.put_comment(7, 1007, "t"), "comment 7 is new, and this bundle has no text encoder"),
    ],
)
def test_changes_that_make_no_sense(load, change, told):
    catalogue = load().catalogue
    with pytest.raises(BadRequest, match=told):
        change(catalogue)
    assert catalogue.stats()["journal_lines"] == 0


def test_a_change_that_is_not_stored_is_not_seen_and_leaves_no_trace(load, monkeypatch):
    recommender = load()
    recommender.catalogue.put_video(7, "seven", VECTORS[0])
    before = scores(recommender)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lsvcr.serving.journal.os.pwrite", full)
    for _ in range(3):
        with pytest.raises(NotStored, match="no space left"):
            recommender.catalogue.put_video(8, "eight", VECTORS[1])
        with pytest.raises(NotStored):
            recommender.catalogue.remove_video(7)
    assert scores(recommender) == before
    monkeypatch.undo()
    recommender.catalogue.put_video(9, "nine", VECTORS[2])
    recommender.catalogue.put_video(10, "ten", VECTORS[3])
    titles = {7: "seven", 8: None, 9: "nine", 10: "ten"}
    for _ in range(2):
        assert {raw: recommender.title(raw) for raw in titles} == titles
        recommender = load()


# New bundles


def test_a_newer_bundle_makes_changes_of_its_own_ids_void_until_they_are_made_again(load):
    recommender = load("a")
    recommender.catalogue.put_video(1007, "changed on a", VECTORS[0])
    recommender.catalogue.put_video(1007 + 7 * 9, "in b, not in a", VECTORS[1])
    recommender.catalogue.put_video(7, "in neither", VECTORS[2])
    recommender.catalogue.remove_video(1014)
    recommender = load("b")
    assert recommender.title(1007) == "video 1" and recommender.title(1070) == "video 10"
    assert recommender.title(7) == "in neither" and recommender.title(1014) is None
    assert recommender.catalogue.stats()["passed_over"] == 2
    recommender.catalogue.put_video(1007, "changed on b", VECTORS[3])
    assert recommender.catalogue.stats()["passed_over"] == 1
    given = scores(recommender)[1007]
    recommender.catalogue.put_video(1007, "its title too")
    assert scores(recommender)[1007] == pytest.approx(given, abs=1e-6) == scores(load("b"))[1007]
    back = load("a")
    assert back.title(1007) == "video 1"  # changed on b last
    assert back.title(1070) == "in b, not in a"


def test_a_bundle_with_other_text_vectors_is_refused_and_the_old_one_goes_on(load, bundles):
    recommender = load("a")
    recommender.catalogue.put_video(7, "seven", VECTORS[0])
    wide = Recommender.load(bundles[0] / "wide")
    with pytest.raises(UserError, match="do not fit .*wide.* has 7 numbers, not 6; serve a bundle"):
        wide.catalogue.take_over(recommender.catalogue)
    recommender.catalogue.put_video(8, "eight", VECTORS[1])
    with pytest.raises(UserError, match="do not fit"):
        load("wide")
    assert load("a").title(8) == "eight"  # the refused one has let go of the folder


def test_a_state_inside_the_bundle_is_refused(bundles, tmp_path):
    inner = shutil.copytree(bundles[0] / "a", tmp_path / "inner")
    (tmp_path / "link").symlink_to(inner)
    for state in (inner, inner / "state", tmp_path / "link" / "deep" / "state"):
        with pytest.raises(UserError, match="lies inside the bundle .*choose a folder outside"):
            Recommender.load(inner, state=state)
    assert not (inner / "state").exists() and not (inner / "deep").exists()
    recommender = Recommender.load(bundles[0] / "b", state=inner / "state")
    with pytest.raises(UserError, match="lies inside the bundle"):
        Recommender.load(inner).catalogue.take_over(recommender.catalogue)
    recommender.catalogue.put_video(7, "seven", VECTORS[0])  # goes on
    recommender.catalogue.close()


def test_the_journal_goes_over_to_another_bundle_while_changes_are_made(load, bundles):
    """Eight threads change without pause while the bundle is exchanged six times: none is lost or refused."""
    held = [load("a")]
    stop, done = threading.Event(), [[] for _ in range(8)]

    def write(thread):
        number = 0
        while not stop.is_set():
            raw = 10_000 * (thread + 1) + number
            held[0].catalogue.put_video(raw, str(raw), VECTORS[raw % 100])
            done[thread].append(raw)
            number += 1

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for name in "bababa":
        new = Recommender.load(bundles[0] / name)
        new.catalogue.take_over(held[0].catalogue)
        held[0] = new
    stop.set()
    for thread in threads:
        thread.join()
    acknowledged = {raw for own in done for raw in own}
    assert len(acknowledged) > 8
    assert acknowledged <= scores(held[0]).keys()
    held[0].catalogue.close()
    with pytest.raises(NotStored, match="closed"):
        held[0].catalogue.put_video(7, "late", VECTORS[0])
    assert acknowledged <= scores(load("a")).keys()


def test_without_a_state_folder_changes_last_as_long_as_the_process(bundles):
    recommender = Recommender.load(bundles[0] / "a")
    recommender.catalogue.put_video(7, "seven", VECTORS[0])
    new = Recommender.load(bundles[0] / "b")
    new.catalogue.take_over(recommender.catalogue)
    recommender.catalogue.put_video(8, "eight", VECTORS[1])  # by way of the old one
    assert (new.title(7), new.title(8)) == ("seven", "eight")
    assert new.catalogue.stats()["journal_bytes"] == 0 and new.catalogue.stats()["changed"] == 2
    with pytest.raises(UserError, match="handed over already"):
        Recommender.load(bundles[0] / "b").catalogue.take_over(recommender.catalogue)


# Others


def test_readers_see_whole_changes_and_never_wait(load, bundles):
    """Title k comes with vector k, always: who reads while it changes sees one pair or the other."""
    recommender, world = load(), bundles[1]
    user = world.user(Task.REC, [], [])
    items = unit(VECTORS @ world.models[Task.REC].projection)
    expected = {str(k): float(items[k] @ user) for k in range(100)}
    recommender.catalogue.put_video(7, "0", VECTORS[0])
    recommender.catalogue.put_comment(1, 7, "0", VECTORS[0])
    stop, wrong, read = threading.Event(), [], [0]

    def check():
        seven = {item.id: item for item in recommender.recommend([], k=100).items}[7]
        if seven.score != pytest.approx(expected[seven.title], abs=1e-5):
            wrong.append(seven)
        ranked = recommender.rank_comments([], [], 7)
        if [item.id for item in ranked.items] != [1]:
            wrong.append(ranked)
        read[0] += 1

    def reader():
        while not stop.is_set():
            check()

    threads = [threading.Thread(target=reader) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(120):
        recommender.catalogue.put_video(7, str(number % 100), VECTORS[number % 100])
        recommender.catalogue.put_comment(1, 7, str(number % 100), VECTORS[number % 100])
    with recommender.catalogue._together.turn:  # as if a change took for ever
        before = read[0]
        while read[0] < before + 10:
            pass
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and read[0] > 10


def test_rows_of_earlier_changes_do_not_pile_up(load, monkeypatch):
    monkeypatch.setattr("lsvcr.serving.catalogue._SPARE_ROWS", 20)
    recommender = load()
    before = scores(recommender)
    for number in range(200):
        recommender.catalogue.put_video(7, str(number), VECTORS[number % 100])
    snapshot = recommender.snapshot
    assert len(snapshot.videos.added_ids) <= 2 * 1 + 20
    assert recommender.title(7) == "199" and recommender.catalogue.stats()["journal_lines"] < 70
    recommender.catalogue.remove_video(7)
    assert scores(recommender) == pytest.approx(before, abs=1e-6)


CHILD = """
import os, sys, threading
import numpy as np
from lsvcr.serving.runtime import Recommender
from lsvcr.serving.text_encoder import TextEncoder
recommender = Recommender.load(sys.argv[1], state=sys.argv[2])
turn, width = int(sys.argv[3]), int(sys.argv[4])
catalogue = recommender.catalogue
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def write(thread):
    for number in range(10**9):
        value = turn * 10**6 + number
        vector = np.full(width, value % 1000, dtype=np.float32)
        video = 10**6 + thread * 10 + number % 3
        catalogue.put_video(video, f"{value}", vector); say("video", video, value)
        comment = 10**7 + thread * 100 + number % 5
        catalogue.put_comment(comment, video, f"{value}", vector, likes=number); say("comment", comment, value)
        if number % 7 == 6:
            catalogue.remove_comment(comment); say("comment", comment, -value)
threads = [threading.Thread(target=write, args=(n,), daemon=True) for n in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
KILLS = 8


def test_kill_at_any_moment_keeps_every_acknowledged_change(bundles, tmp_path):
    """A child with three writing threads is killed again and again; what it said was done is there, and whole."""
    chance, state = random.Random(11), tmp_path / "state"
    done: dict[tuple[str, int], int] = {}
    for turn in range(1, KILLS + 1):
        command = [sys.executable, "-c", CHILD, str(bundles[0] / "a"), str(state), str(turn), str(W)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        first = child.stdout.readline()
        killer = threading.Timer(chance.uniform(0.0, 0.3), child.send_signal, [signal.SIGKILL])
        killer.start()
        said = first + child.stdout.read()
        killer.join()
        assert child.wait() == -signal.SIGKILL
        for line in said.decode().splitlines():
            kind, raw, value = line.split()
            done[kind, int(raw)] = int(value)
        recommender = Recommender.load(bundles[0] / "a", state=state)
        check_done(recommender, done)
        recommender.catalogue.close()
    assert len(done) >= 15


def check_done(recommender: Recommender, done: dict[tuple[str, int], int]) -> None:
    """Each id is as it was acknowledged, or as the one change after that which may have been under way."""
    texts = {}
    for video in {raw for kind, raw in done if kind == "video"}:
        info = recommender.video(video, limit=1000)
        texts["video", video] = int(info.title)
        texts |= {("comment", comment.id): int(comment.text) for comment in info.comments}
    for key, value in done.items():
        found = texts.get(key)
        if value < 0:
            assert found is None or found > -value
        elif found is None:
            assert key[0] == "comment" and (value % 10**6) % 7 == 6, f"{key} was acknowledged and is gone"
        else:
            assert found >= value
    for raw in {raw for kind, raw in done if kind == "video"}:
        vector = np.frombuffer(_vector_of(recommender, raw), dtype="<f4")
        assert (vector == texts["video", raw] % 1000).all(), "half of a change"


def _vector_of(recommender: Recommender, raw: int) -> bytes:
    record = recommender.catalogue._journal.get("video", raw)
    assert record is not None
    return base64.b64decode(record["vector"])


def test_a_state_folder_that_is_in_use_is_named(load, bundles, tmp_path):
    load()
    with pytest.raises(UserError, match="is in use by process"):
        Recommender.load(bundles[0] / "a", state=tmp_path / "state")
    assert Path(tmp_path / "state").is_dir()
