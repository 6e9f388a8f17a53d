"""The audit: every check holds on what `lsvcr prepare` writes, and is seen to fail on data spoilt for it."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lsvcr.data import audit as audit_module
from lsvcr.data import audit_facts, audit_tally
from lsvcr.data.audit import OF_OUR_CUT, audit
from lsvcr.data.audit_tally import SENTENCES, Check
from lsvcr.data.audit_vectors import audit_file, audit_vectors
from lsvcr.data.prepare import prepare
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.settings import PrepareSettings

USER = 1
"""Index of a user with samples of both tasks in every split."""


class Copy:
    """A copy of a prepared dataset whose arrays can be changed; sizes stay, so that it still opens."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.root = shutil.copytree(source, folder)

    def load(self, name: str) -> np.ndarray:
        return np.load(self.root / f"{name}.npy")

    def save(self, name: str, array: np.ndarray) -> None:
        np.save(self.root / f"{name}.npy", array)

    def row_of(self, table: str, user: int = USER) -> int:
        """The last sample of a user."""
        return int(np.flatnonzero(self.load(f"samples/{table}")["user"] == user)[-1])

    def open(self) -> Dataset:
        return open_dataset(self.root)


@pytest.fixture(scope="session")
def temporal_data(tiny_raw: Path) -> Path:
    """The tiny world, split by time."""
    out = tiny_raw.parent / "temporal"
    return prepare(PrepareSettings(raw=str(tiny_raw), out=str(out), user_core=3, split="temporal"))


@pytest.fixture
def copy(tiny_data: Path, tmp_path: Path) -> Copy:
    return Copy(tiny_data, tmp_path / "data")


@pytest.fixture
def temporal(temporal_data: Path, tmp_path: Path) -> Copy:
    return Copy(temporal_data, tmp_path / "temporal")


def failing(dataset: Dataset) -> dict[tuple[str, str], Check]:
    """The checks that fail, but for the files' hashes, which every spoilt dataset fails."""
    return {
        (check.name, check.where): check
        for check in audit(dataset)
        if check.failed and check.name != "files_as_prepared"
    }


def change(name: str, place, value) -> Callable[[Copy], int]:
    """Set one element; `value` may be a function of the old one."""

    def spoil(copy: Copy) -> int:
        array = copy.load(name)
        array[place] = value(array[place]) if callable(value) else value
        copy.save(name, array)
        return place[0] if isinstance(place, tuple) else place

    return spoil


def in_sample(table: str, column: str, value: Callable[[int], int]) -> Callable[[Copy], int]:
    """Change a column of the last sample of `USER`."""

    def spoil(copy: Copy) -> int:
        row, rows = copy.row_of(table), copy.load(f"samples/{table}")
        rows[column][row] = value(int(rows[column][row]))
        copy.save(f"samples/{table}", rows)
        return row

    return spoil


def reaches_test(copy: Copy) -> int:
    """A training sample gets the cut and the histories of its user's test sample."""
    row, rows = copy.row_of("rec.train"), copy.load("samples/rec.train")
    test = copy.load("samples/rec.test")[copy.row_of("rec.test")]
    for column in ("cut", "video_end", "comment_end"):
        rows[column][row] = test[column]
    copy.save("samples/rec.train", rows)
    return row


def trains_on_test_target(copy: Copy) -> int:
    target = copy.load("samples/rec.test")["video"][copy.row_of("rec.test")]
    return in_sample("rec.train", "video", lambda _: int(target))(copy)


def trains_on_test_positive(copy: Copy) -> int:
    test = copy.row_of("comm_rank.test")
    place = copy.load("samples/comm_rank.test.positive_offsets")[test]
    positive = copy.load("samples/comm_rank.test.positive_items")[place]
    row = copy.row_of("comm_rank.train")
    change(
        "samples/comm_rank.train.positive_items",
        int(copy.load("samples/comm_rank.train.positive_offsets")[row]),
        positive,
    )(copy)
    return row


def same_user_twice(copy: Copy) -> int:
    rows = copy.load("samples/rec.test")
    rows[3] = rows[2]
    copy.save("samples/rec.test", rows)
    return 3


def target_not_listed(copy: Copy) -> int:
    lists, rows = copy.load("candidates/rec.test"), copy.load("samples/rec.test")
    lists[5][lists[5] == rows["video"][5]] = rows["video"][5] % 32 + 1
    copy.save("candidates/rec.test", lists)
    return 5


def foreign_candidate(copy: Copy) -> int:
    offsets, rows = copy.load("candidates/comm_rank.test.offsets"), copy.load("samples/comm_rank.test")
    others = copy.load("video_comments/offsets")
    other = next(v for v in range(1, 32) if v != rows["video"][4] and others[v + 1] > others[v])
    comment = copy.load("video_comments/items")[others[other]]
    change("candidates/comm_rank.test", int(offsets[4]), comment)(copy)
    return 4


SPOILT = {
    ("offsets_in_order", "events.video"): change("events/video_offsets", 3, lambda old: old + 1000),
    ("items_in_range", "events.comment"): change("events/comment_items", 7, 0),
    ("events_in_time_order", "events.video"): change("events/video_times", 1, 0),
    ("each_event_once", "events.video"): lambda copy: change(
        "events/video_items", 1, copy.load("events/video_items")[0]
    )(copy),
    ("offsets_in_order", "impressions"): change("impressions/offsets", 3, lambda old: old + 1000),
    ("items_in_range", "impressions"): change("impressions/items", 5, 33),
    ("events_in_time_order", "impressions"): change("impressions/times", 1, 0),
    ("clicks_are_0_or_1", "impressions"): change("impressions/clicked", 4, 2),
    ("comments_under_their_video", "events.comment"): change(
        "events/comment_videos", 2, lambda old: old % 30 + 1
    ),
    ("pointers_inside", "rec.train"): in_sample("rec.train", "video_end", lambda end: end + 100),
    ("video_history_before_cut", "rec.test"): in_sample("rec.test", "video_end", lambda end: end + 1),
    ("comment_history_before_cut", "comm_rank.test"): in_sample(
        "comm_rank.test", "comment_end", lambda end: end + 1
    ),
    ("video_history_complete", "rec.test"): in_sample("rec.test", "video_end", lambda end: end - 1),
    ("comment_history_complete", "rec.val"): in_sample("rec.val", "comment_end", lambda end: end - 1),
    ("no_held_out_in_history", "rec.train"): reaches_test,
    ("no_held_out_target", "rec.train"): trains_on_test_target,
    ("no_held_out_target", "comm_rank.train"): trains_on_test_positive,
    ("split_order", "rec.train"): reaches_test,
    ("target_at_cut", "rec.val"): in_sample("rec.val", "video", lambda video: video % 32 + 1),
    ("target_at_cut", "comm_rank.test"): in_sample("comm_rank.test", "cut", lambda cut: cut - 1),
    ("positives_of_the_video", "comm_rank.train"): in_sample(
        "comm_rank.train", "video", lambda video: video % 30 + 1
    ),
    ("one_row_a_user", "rec.test"): same_user_twice,
    ("counts_leave_out_held_out", "rec.train_counts"): change("train_counts/videos", 6, 99),
    ("candidates_in_range", "rec.val.candidates"): change("candidates/rec.val", (2, 0), 0),
    ("candidates_distinct", "rec.test.candidates"): target_not_listed,
    ("candidates_hold_positives", "rec.test.candidates"): target_not_listed,
    ("candidates_of_the_video", "comm_rank.test.candidates"): foreign_candidate,
}
"""(check, table) -> what makes it fail, and returns the row that does."""


def test_all_checks_hold_on_what_prepare_writes(tiny_data, temporal_data):
    for data in (tiny_data, temporal_data):
        checks = audit(open_dataset(data))
        assert [check for check in checks if check.failed] == []
        assert all(check.rows for check in checks)


def test_every_sentence_is_tested():
    tested = {name for name, _ in SPOILT}
    tested |= {"files_as_prepared", "targets_before_split_end", "no_held_out_in_joint_history"}
    assert tested == set(SENTENCES)


@pytest.mark.parametrize(("key", "spoil"), SPOILT.items(), ids=[" ".join(key) for key in SPOILT])
def test_a_check_fails_on_data_spoilt_for_it(key, spoil, copy):
    row = spoil(copy)
    found = failing(copy.open())
    assert key in found
    assert found[key].first == row or key[0] == "offsets_in_order"
    # Offsets fall from row 3 to row 4.
    assert key[0] != "offsets_in_order" or found[key].first == 3
    assert found[key].failed == 1
    assert found[key].to_json()["ok"] is False


def test_a_changed_file_is_named(copy):
    change("train_counts/comments", 0, 0)(copy)  # row 0 was 0: same content, same hash
    assert not [check for check in audit(copy.open()) if check.failed]
    change("train_counts/comments", 0, -1)(copy)
    first = next(check for check in audit(copy.open()) if check.name == "files_as_prepared")
    assert (first.failed, first.first) == (1, "train_counts/comments.npy")


def test_a_joint_history_that_shows_the_other_task_is_found(copy, monkeypatch):
    """A comment sample younger than the user's last like sees it; stage one must not."""
    rows, like = copy.load("samples/comm_rank.train"), copy.load("samples/rec.test")[copy.row_of("rec.test")]
    row = copy.row_of("comm_rank.train")
    rows["video_end"][row] = like["video_end"] + 1
    copy.save("samples/comm_rank.train", rows)
    found = failing(copy.open())
    assert ("no_held_out_in_history", "comm_rank.train") not in found  # trained on alone it may
    assert ("no_held_out_in_joint_history", "comm_rank.train.joint") not in found  # hidden from stage one
    monkeypatch.setattr(audit_module, "joint_samples", Dataset.samples)
    check = failing(copy.open())["no_held_out_in_joint_history", "comm_rank.train.joint"]
    assert check.first <= row and check.failed >= 1


def test_a_positive_behind_the_end_of_its_split_is_found(temporal):
    cuts = json.loads((temporal.root / "manifest.json").read_text())["split"]["cut_times"]
    rows, times = temporal.load("samples/comm_rank.train"), temporal.load("events/comment_times")
    user = int(rows["user"][4])
    offsets = temporal.load("events/comment_offsets")
    late = next(p for p in range(offsets[user], offsets[user + 1]) if times[p] >= cuts["val"])
    place = int(temporal.load("samples/comm_rank.train.positive_offsets")[4])
    change("samples/comm_rank.train.positive_items", place, temporal.load("events/comment_items")[late])(
        temporal
    )
    assert failing(temporal.open())["targets_before_split_end", "comm_rank.train"].first == 4


@pytest.mark.parametrize(("table", "cut"), [("train", "val"), ("val", "test")])
def test_a_cut_in_a_later_split_is_found(table, cut, temporal):
    cuts = json.loads((temporal.root / "manifest.json").read_text())["split"]["cut_times"]
    change(f"samples/rec.{table}", 2, lambda row: _with(row, "cut", cuts[cut]))(temporal)
    assert failing(temporal.open())["split_order", f"rec.{table}"].first == 2


def test_a_cut_in_an_earlier_split_is_found(temporal):
    cuts = json.loads((temporal.root / "manifest.json").read_text())["split"]["cut_times"]
    change("samples/rec.test", 1, lambda row: _with(row, "cut", cuts["test"] - 1))(temporal)
    assert failing(temporal.open())["split_order", "rec.test"].first == 1


def _with(row: np.void, column: str, value: int) -> np.void:
    changed = row.copy()
    changed[column] = value
    return changed


@pytest.mark.parametrize("spoil", [None, reaches_test, same_user_twice, target_not_listed])
def test_chunks_do_not_show(spoil, copy, monkeypatch):
    if spoil:
        spoil(copy)
    whole = audit(copy.open())
    small = partial(audit_tally.chunks, rows=3)
    monkeypatch.setattr(audit_module, "chunks", small)
    monkeypatch.setattr("lsvcr.data.audit_candidates._ROWS", 3)
    monkeypatch.setattr("lsvcr.data.audit_events.ROWS", 2)
    assert audit(copy.open()) == whole


def test_of_foreign_samples_only_what_they_promise_is_asked(copy):
    manifest = json.loads((copy.root / "manifest.json").read_text())
    (copy.root / "manifest.json").write_text(json.dumps({**manifest, "source": "official"}))
    same_user_twice(copy)
    assert {check.name for check in audit(copy.open())} & OF_OUR_CUT == set()
    reaches_test(copy)
    assert ("no_held_out_in_history", "rec.train") in failing(copy.open())


def test_quantiles_are_those_of_numpy():
    rng = np.random.default_rng(1)
    for values in (rng.integers(0, 50, 1000), np.array([3]), np.array([0, 0, 7])):
        found = audit_facts.quantiles(values)
        for name, share in audit_facts.QUANTILES.items():
            assert found[name] == np.quantile(values, share, method="inverted_cdf")
        assert (found["min"], found["max"]) == (values.min(), values.max())
        assert found["mean"] == pytest.approx(values.mean())
    assert audit_facts.quantiles(np.zeros(0, np.int64)) is None


def test_lengths_are_those_counted_one_by_one(tiny_dataset, monkeypatch):
    monkeypatch.setattr(audit_facts, "chunks", partial(audit_tally.chunks, rows=5))
    found = audit_facts.lengths(tiny_dataset)
    comment = tiny_dataset.comment_events
    entries, sizes = [], []
    for sample in tiny_dataset.samples("rec", "train").rows:
        start, end = comment.offsets[sample["user"]], sample["comment_end"]
        entries.append(len(set(comment.groups[start:end].tolist())))
    for user in range(1, tiny_dataset.n_users + 1):
        own = comment.groups[comment.offsets[user] : comment.offsets[user + 1]]
        sizes += np.bincount(own).tolist()
    assert found["comment_history"]["rec"]["train"] == audit_facts.quantiles(np.array(entries))
    assert found["comments_of_an_entry"] == audit_facts.quantiles(np.array(sizes))
    assert found["video_history"]["rec"]["test"]["max"] == 6  # seven likes, the last one is the target
    assert found["likes_of_a_user"]["p50"] == 7
    assert found["impressions_of_a_user"] == found["likes_of_a_user"]


def test_shares_see_ties_and_what_is_cold(copy):
    dataset = copy.open()
    shares = audit_facts.shares(dataset)
    assert shares["likes_at_the_time_of_the_one_before"] == 0
    assert shares["videos_without_comments"] == 2 / 32
    change("impressions/clicked", slice(0, 3), 1)(copy)
    assert audit_facts.shares(copy.open())["clicked_impressions"] == 3 / (24 * 7)
    targets = dataset.samples("rec", "test").video
    assert shares["cold_test_targets"]["rec"] == np.mean(dataset.train_counts()[targets] < 5)
    times = copy.load("events/video_times")
    start = copy.load("events/video_offsets")[USER]
    change("events/video_times", int(start) + 6, times[start + 5])(
        copy
    )  # the test target, tied with the like before
    rows = copy.load("samples/rec.test")
    row = copy.row_of("rec.test")
    rows["video_end"][row] -= 1
    copy.save("samples/rec.test", rows)
    shares = audit_facts.shares(copy.open())
    assert shares["likes_at_the_time_of_the_one_before"] == 1 / len(times)
    assert shares["test_targets_tied_with_the_event_before"]["rec"] == 1 / len(rows)


def test_texts_that_repeat_and_that_are_empty(tiny_dataset):
    found = audit_facts.texts(tiny_dataset)
    assert found["titles"]["empty"] == 1 / 32 and found["titles"]["shared_with_another"] == 0
    contents = list(tiny_dataset.contents())[1:]
    repeated = sum(contents.count(text) > 1 for text in contents)
    assert found["comments"]["shared_with_another"] == repeated / len(contents)
    assert found["comments"]["distinct"] == len(set(contents))
    top = found["comments"]["most_repeated"][0]
    assert contents.count(top["text"]) == top["times"] == max(map(contents.count, contents))


def test_dates_are_those_of_the_log_and_counters_have_none(copy):
    assert audit_facts.time_span(copy.open())["first"] == "2023-09-29"
    for name in ("events/video_times", "events/comment_times"):
        copy.save(name, np.arange(len(copy.load(name))))
    found = audit_facts.time_span(copy.open())
    assert found["first_ms"] == 0 and found["first"] is None
    assert len(found["outside"]) == 2
    manifest = json.loads((copy.root / "manifest.json").read_text())
    (copy.root / "manifest.json").write_text(json.dumps({**manifest, "source": "official"}))
    assert audit_facts.time_span(copy.open())["outside"] == []


@pytest.mark.parametrize(
    ("factor", "looks"),
    [
        (1e-3, "a thousand times too small, as if seconds had been read as milliseconds"),
        (1e3, "a thousand times too large, as if milliseconds had been read as seconds"),
        (1e6, "a million times too large, as if microseconds had been read as seconds"),
    ],
)
def test_times_in_another_unit_are_told_for_likes_and_comments_apart(copy, factor, looks):
    assert audit_facts.time_span(copy.open())["outside"] == []
    for name, what in (("video", "likes"), ("comment", "comment interactions")):
        times = copy.load(f"events/{name}_times")
        copy.save(f"events/{name}_times", (times * factor).astype(np.int64))
        (found,) = audit_facts.time_span(copy.open())["outside"]
        assert found.startswith(
            f"{len(times)} of {len(times)} {what} lie outside of the years 1990 to 2100, {looks}; unless"
        )
        copy.save(f"events/{name}_times", times)


@pytest.fixture
def vectors(tmp_path) -> Path:
    """Twelve good rows behind row 0; row 5 has no text."""
    table = np.random.default_rng(2).normal(size=(13, 8)).astype(np.float32)
    table[[0, 5]] = 0
    np.save(tmp_path / "v.npy", table)
    return tmp_path / "v.npy"


def audited(path: Path, change: Callable[[np.ndarray], None] = lambda table: None) -> dict:
    table = np.load(path)
    change(table)
    np.save(path, table)
    has_text = np.ones(13, bool)
    has_text[[0, 5]] = False
    return audit_file(path, has_text, 11, "hash")


def test_good_vectors(vectors):
    found = audited(vectors)
    table = np.load(vectors).astype(np.float64)
    real = table[[i for i in range(13) if i not in (0, 5)]]
    units = real / np.linalg.norm(real, axis=1, keepdims=True)
    mean = real.mean(axis=0) / np.linalg.norm(real.mean(axis=0))
    assert found["problem"] is None
    assert [found[key] for key in ("zero_rows", "not_finite_rows", "rows_that_should_be_zero")] == [0, 0, 0]
    assert found["shared_by_different_texts"] == 0 and found["distinct_vectors"] == 11
    assert found["mean_norm"] == pytest.approx(np.linalg.norm(real, axis=1).mean())
    assert found["mean_cosine"] == pytest.approx((units @ mean).mean())
    assert found["made_for_this_data"] is None and found["as_described"] is None


def test_bad_vectors_are_counted_and_do_not_raise(vectors, monkeypatch):
    monkeypatch.setattr("lsvcr.data.audit_vectors.CHUNK_ROWS", 4)

    def spoil(table):
        table[3], table[7, 2], table[9, 0] = 0, np.nan, np.inf
        table[5, 1] = 1
        table[11] = table[10]

    found = audited(vectors, spoil)
    assert (found["zero_rows"], found["first_zero"]) == (1, 3)
    assert (found["not_finite_rows"], found["first_not_finite"]) == (2, 7)
    assert found["rows_that_should_be_zero"] == 1
    assert found["distinct_vectors"] == 7  # of eleven: one zero, two not finite, one a repeat
    json.dumps(found, allow_nan=False)


def test_collapsed_vectors_have_a_cosine_near_one(vectors):
    def spoil(table):
        table[1:] = 1 + table[1:] * 1e-3

    assert audited(vectors, spoil)["mean_cosine"] > 0.999


@pytest.mark.parametrize("shape", [(12, 8), (13,)])
def test_vectors_of_another_shape_are_a_problem(vectors, shape):
    np.save(vectors, np.ones(shape, np.float32))
    assert "13" in audit_file(vectors, np.ones(13, bool), 12, "hash")["problem"]


def test_half_a_file_is_a_problem(vectors):
    vectors.write_bytes(vectors.read_bytes()[:200])
    assert "damaged" in audit_file(vectors, np.ones(13, bool), 12, "hash")["problem"]


def test_the_description_beside_vectors_is_compared(vectors):
    entry = {"data_hash": "hash", "sha256": "0"}
    (vectors.parent / "embeddings.json").write_text(json.dumps({"files": {"v.npy": entry}}))
    found = audited(vectors)
    assert found["made_for_this_data"] is True and found["as_described"] is False


def test_files_of_a_folder_are_found(tiny_dataset, tmp_path):
    assert audit_vectors(tiny_dataset, tmp_path) == []
    table = np.random.default_rng(3).normal(size=(tiny_dataset.n_comments + 1, 4)).astype(np.float32)
    texts = list(tiny_dataset.contents())
    # Equal texts have equal vectors.
    table = table[[texts.index(text) for text in texts]]
    table[0] = 0
    np.save(tmp_path / "comment_embs.npy", table)
    (found,) = audit_vectors(tiny_dataset, tmp_path)
    assert found["file"] == "comment_embs.npy" and found["problem"] is None
    assert found["shared_by_different_texts"] == 0 and found["zero_rows"] == 0
