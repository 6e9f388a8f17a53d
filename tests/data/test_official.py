import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsvcr.data.audit import audit
from lsvcr.data.people import people_of
from lsvcr.data.prepare import prepare
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.schema import Split, Task
from lsvcr.settings import PrepareSettings
from lsvcr.utils.errors import UserError
from tests.data.raw_official import (
    COMMENTS,
    TABLES,
    VIDEOS,
    line,
    record_of,
    records,
    small_lines,
    without_number,
    write_official,
)

REC, RANK = Task.REC, Task.COMM_RANK


def imported(raw: Path, **options) -> Dataset:
    settings = PrepareSettings(source="official", raw=str(raw), out=str(raw.parent / "data"), **options)
    return open_dataset(prepare(settings), verify=True)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_official(tmp_path / "raw", small_lines())


def assert_all_kept(dataset: Dataset, lines: dict) -> None:
    """Every sample stands in its row exactly as in its line, and nothing in a history is at or after the cut."""
    for task, split in TABLES:
        found = records(dataset, task, split)
        assert list(map(without_number, found)) == list(map(record_of, lines.get((task, split), [])))
        samples = dataset.samples(task, split)
        for events, end in (
            (dataset.video_events, samples.video_end),
            (dataset.comment_events, samples.comment_end),
        ):
            some = end > events.offsets[samples.user]
            assert (events.times[end[some] - 1] < samples.cut[some]).all()
            assert (end <= events.offsets[samples.user + 1]).all()


def test_samples_come_back_row_by_row(raw: Path):
    lines = small_lines()
    dataset = imported(raw)
    assert_all_kept(dataset, lines)
    assert dataset.raw_ids("users").to_list() == ["a", "8"]
    assert dataset.raw_ids("videos").to_list() == VIDEOS
    assert dataset.raw_ids("comments").to_list() == list(COMMENTS)
    assert dataset.titles()[3] == "title of v3" and dataset.contents()[11] == "text of c10"
    assert dataset.video_comments.row(1).tolist() == [11, 6, 1], "in the order of the list, not of the ids"
    assert len(dataset.video_comments.row(6)) == 0
    assert [check.name for check in audit(dataset) if check.failed] == []


def test_one_chain_a_person_with_targets_at_their_cuts(raw: Path):
    """User 8 is a chain v6 v5 v4 and the last target; user a's has entries c0 c5 | c1 | c2 c7."""
    dataset = imported(raw)
    video, comment = dataset.video_events, dataset.comment_events
    assert video.items[video.offsets[1] : video.offsets[2]].tolist() == [1, 2, 3, 4]
    assert video.items[video.offsets[2] : video.offsets[3]].tolist() == [6, 5, 4, 1]
    assert comment.items.tolist() == [1, 6, 2, 3, 8]
    assert comment.groups.tolist() == [0, 0, 1, 2, 2]
    # v1, then v1's comments (their sample has seen v1), v2, its comment, v3, c2, at the same time v4 and c7.
    assert video.times[video.offsets[1] : video.offsets[2]].tolist() == [0, 2, 4, 6]
    assert comment.times.tolist() == [1, 1, 3, 5, 6]
    for split in Split:
        samples = dataset.samples(REC, split)
        assert (video.times[samples.video_end] == samples.cut).all()
        assert (video.items[samples.video_end] == samples.video).all()
        rank = dataset.samples(RANK, split)
        assert (comment.times[rank.comment_end] == rank.cut).all()


def test_training_counts_are_people_in_training_samples(raw: Path):
    dataset = imported(raw)
    assert dataset.train_counts().tolist() == [0, 1, 1, 0, 0, 1, 1], "v1 v2 of a; v6 v5 of 8"
    counts = dataset.comment_train_counts()
    assert np.flatnonzero(counts).tolist() == [1, 6] and counts.max() == 1
    assert dataset.manifest["counts"]["raw"] == {"people": 2}


def test_a_history_that_begins_otherwise_is_a_user_of_its_own(tmp_path: Path):
    lines = small_lines()
    lines[REC, Split.TEST] += [
        line("a", ["v2", "v3"], [("v2", ["c1"])], "v4"),
        line("a", ["v3", "v4"], [], "v1"),
        line("a#2", ["v3"], [], "v1"),
    ]
    lines[REC, Split.TRAIN] += [line("a", ["v2", "v1"], [], "v1"), line("a", ["v2", "v1"], [], "v1")]
    dataset = imported(write_official(tmp_path / "raw", lines))
    found = records(dataset, REC, Split.TEST)
    assert [record[0] for record in found] == ["a", "8", "a#4", "a#5", "a#2"], "a#2 is a real user's id"
    assert [record[1:] for record in found] == [record_of(own)[1:] for own in lines[REC, Split.TEST]]
    assert [record[0] for record in records(dataset, REC, Split.TRAIN)] == ["a", "8", "a#3", "a#3"]
    assert dataset.train_counts()[1] == 1, "a person counts once, whatever the number of users made of one"
    tested = people_of(dataset, REC, Split.TEST)
    assert tested[0] == tested[2] == tested[3] != tested[1], "rows of a person are told to be of one"
    assert len(set(people_of(dataset, REC, Split.TRAIN).tolist())) == 2


def test_one_visit_and_two_visits_are_told_apart(tmp_path: Path):
    lines = small_lines()
    lines[REC, Split.TRAIN] = [
        line("b", ["v1"], [("v1", ["c0", "c5"])], "v2"),
        line("b", ["v1"], [("v1", ["c0"]), ("v1", ["c5"])], "v2"),
    ]
    dataset = imported(write_official(tmp_path / "raw", lines))
    assert [record[2] for record in records(dataset, REC, Split.TRAIN)] == [
        (("v1", ("c0", "c5")),),
        (("v1", ("c0",)), ("v1", ("c5",))),
    ]


def test_targets_that_no_history_shows_come_last(tmp_path: Path):
    """The rest of an entry that a history shows in part goes on with it; a target of its own is an entry of its own."""
    lines = small_lines()
    lines[RANK, Split.TRAIN] = [line("b", [], [("v1", ["c0"])], "v2", "c1")]
    lines[RANK, Split.TEST] = [line("b", [], [], "v1", "c0", "c5")]
    dataset = imported(write_official(tmp_path / "raw", lines))
    user = dataset.raw_ids("users").to_list().index("b") + 1
    start, end = dataset.comment_events.offsets[user : user + 2]
    assert dataset.comment_events.items[start:end].tolist() == [1, 6, 2]
    assert dataset.comment_events.videos[start:end].tolist() == [1, 1, 2]
    assert dataset.comment_events.groups[start:end].tolist() == [0, 0, 1]


videos_strategy = st.lists(st.sampled_from(VIDEOS[:3]), max_size=4)
entries_strategy = st.lists(
    st.tuples(
        st.sampled_from(VIDEOS[:2]), st.lists(st.sampled_from(list(COMMENTS)[:3]), min_size=1, max_size=2)
    ),
    max_size=3,
)
rec_strategy = st.builds(
    line, st.sampled_from("ab"), videos_strategy, entries_strategy, st.sampled_from(VIDEOS)
)
rank_strategy = st.builds(
    lambda sample, positives: sample | {"pos_comments": positives},
    rec_strategy,
    st.lists(st.sampled_from(list(COMMENTS)[:4]), min_size=1, max_size=3, unique=True),
)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_samples_are_kept_exactly(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    lines = {}
    for task, split in TABLES:
        one = rec_strategy if task is REC else rank_strategy
        lines[task, split] = data.draw(
            st.lists(one, min_size=task is REC, max_size=6), label=f"{task} {split}"
        )
    dataset = imported(write_official(tmp_path_factory.mktemp("any") / "raw", lines))
    assert_all_kept(dataset, lines)
    assert [check.name for check in audit(dataset) if check.failed and check.name in PROMISED] == []
    for split in (Split.VAL, Split.TEST):
        found = dataset.candidates(RANK, split)
        positives = dataset.samples(RANK, split).positives
        assert positives is not None
        for row in range(len(positives.offsets) - 1):
            assert Counter(found.row(row).tolist()) >= Counter(positives.row(row).tolist())
    assert all_known(dataset, lines, REC) == as_counts(dataset, "videos", dataset.train_counts())
    assert all_known(dataset, lines, RANK) == as_counts(dataset, "comments", dataset.comment_train_counts())


PROMISED = {
    "offsets_in_order",
    "items_in_range",
    "events_in_time_order",
    "pointers_inside",
    "video_history_before_cut",
    "comment_history_before_cut",
    "candidates_in_range",
    "candidates_distinct",
    "candidates_hold_positives",
}
"""What must hold whatever the files say; the rest depends on them."""


def all_known(dataset: Dataset, lines: dict, task: Task) -> Counter:
    """Item -> people, counted with sets."""
    pairs = set()
    for own in lines[task, Split.TRAIN]:
        user, liked, entries, video, positives = record_of(own)
        items = [*liked, video] if task is REC else [*positives, *(c for _, group in entries for c in group)]
        pairs |= {(user, item) for item in items}
    return Counter(item for _, item in pairs)


def as_counts(dataset: Dataset, kind, counts: np.ndarray) -> Counter:
    return Counter(dict(zip(dataset.raw_ids(kind), counts[1:].tolist(), strict=True))) + Counter()


def json_line(name: str, number: int, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change line `number` (from 1) of a sample file."""

    def edit(raw: Path) -> None:
        lines = (raw / name).read_text().splitlines()
        record = json.loads(lines[number - 1])
        changed = change(record)
        lines[number - 1] = changed if isinstance(changed, str) else json.dumps(record)
        (raw / name).write_text("\n".join(lines) + "\n")

    return edit


def entry(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change the object of photo.json or comment.json."""

    def edit(raw: Path) -> None:
        content = json.loads((raw / name).read_text())
        change(content)
        (raw / name).write_text(json.dumps(content))

    return edit


def sets(**values) -> Callable[[dict], None]:
    return lambda record: record.update(values)


BROKEN = {
    "not json": (
        json_line("rec.val.json", 2, lambda _: '{"user_id": 8,'),
        r"rec\.val\.json, line 2: not valid JSON \(Expecting property name",
    ),
    "a list": (
        json_line("rec.train.json", 1, lambda _: "[1, 2]"),
        r"line 1: expected a JSON object, not \[1, 2\]",
    ),
    "a huge number": (
        json_line("rec.train.json", 1, lambda _: '{"a": %s}' % ("1" * 9999)),
        r"line 1: not valid JSON",
    ),
    "no target": (
        json_line("rec.train.json", 1, lambda r: r.pop("target_photo") and None),
        r"line 1: no target_photo",
    ),
    "no user": (
        json_line("rec.train.json", 2, sets(user_id=None)),
        r"line 2: user_id is None, expected a string",
    ),
    "an unknown target": (
        json_line("rec.test.json", 1, sets(target_photo="v99")),
        r"rec\.test\.json, line 1: video v99 is not in all_photos\.pkl",
    ),
    "padding in a history": (
        json_line("rec.test.json", 1, sets(photo_inter_his=["[PAD]"])),
        r"line 1: video \[PAD\] is not in all_photos\.pkl",
    ),
    "an unknown comment": (
        json_line("rec.test.json", 1, sets(comment_inter_his=[["v1"], [["x"]]])),
        r"comment x is not in all_comments\.pkl",
    ),
    "an unknown video of an entry": (
        json_line("rec.test.json", 1, sets(comment_inter_his=[["w"], [["c0"]]])),
        r"video w is not in all_photos\.pkl",
    ),
    "a text for a list": (
        json_line("rec.test.json", 1, sets(photo_inter_his="v1")),
        r"photo_inter_his is 'v1', expected a list",
    ),
    "lists of unequal length": (
        json_line("comm_rank.test.json", 1, sets(comment_inter_his=[["v1", "v2"], [["c0"]]])),
        r"comm_rank\.test\.json, line 1: comment_inter_his has 2 videos and 1 lists of comments",
    ),
    "an entry without comments": (
        json_line("comm_rank.test.json", 1, sets(comment_inter_his=[["v1"], [[]]])),
        r"comment_inter_his has an entry without a list of comments",
    ),
    "a flat history": (
        json_line("comm_rank.test.json", 1, sets(comment_inter_his=["v1", "v2"])),
        r"comment_inter_his is not a list of videos and a list of their comments",
    ),
    "no positives": (
        json_line("comm_rank.val.json", 1, sets(pos_comments=[])),
        r"comm_rank\.val\.json, line 1: pos_comments is empty",
    ),
    "an unknown positive": (
        json_line("comm_rank.val.json", 1, sets(pos_comments=[3])),
        r"comment 3 is not in",
    ),
    "no entry": (
        entry("photo.json", lambda photos: photos.pop("v2")),
        r"photo\.json, entry v2: there is none",
    ),
    "an entry too many": (
        entry("comment.json", sets(c77={"content": "x"})),
        r"comment\.json, entry c77: the list of ids does not have it",
    ),
    "a number for a title": (
        entry("photo.json", lambda photos: photos["v2"].update(title=7)),
        r"photo\.json, entry v2: title is 7, expected a text",
    ),
    "an unknown listed comment": (
        entry("photo.json", lambda photos: photos["v2"]["comment_list"].append("zz")),
        r"photo\.json, entry v2: comment zz is not in all_comments\.pkl",
    ),
    "no content": (entry("comment.json", sets(c3={})), r"comment\.json, entry c3: no content"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_row_is_named_or_skipped(raw: Path, case: str):
    change, message = BROKEN[case]
    change(raw)
    with pytest.raises(UserError, match=rf"{message}.*--skip-bad-rows"):
        imported(raw)
    assert not (raw.parent / "data").exists()
    if case in ("no positives", "an unknown positive", "an unknown target"):
        assert imported(raw, skip_bad_rows=True).manifest["skipped_rows"]


def test_skipped_rows_leave_the_others(raw: Path):
    with open(raw / "rec.train.json", "a") as stream:
        stream.write('\n{"user_id"\n' + json.dumps(line("a", ["v1", "v9"], [], "v2")) + "\n")
    entry("photo.json", lambda photos: photos["v2"].update(title=7))(raw)
    with pytest.raises(UserError, match=r"entry v2"):
        imported(raw)
    dataset = imported(raw, skip_bad_rows=True)
    assert_all_kept(dataset, small_lines())
    skipped = dataset.manifest["skipped_rows"]
    assert {name: found["rows"] for name, found in skipped.items()} == {"rec.train.json": 2, "photo.json": 1}
    assert skipped["rec.train.json"]["first"][1].startswith(f"{raw / 'rec.train.json'}, line 5: video v9")
    assert dataset.titles()[2] == "" and len(dataset.video_comments.row(2)) == 0


LISTS = {
    "no list": ("[PAD]", r"holds no list that starts with '\[PAD\]'"),
    "no padding": (["v1", "v2"], r"all_photos\.pkl holds no list that starts with '\[PAD\]'"),
    "padding alone": (["[PAD]"], r"holds no id but"),
    "an id twice": (["[PAD]", "v1", "v2", "v1"], r"all_photos\.pkl, place 3: 'v1' stands here a second time"),
    "a number and its text": (["[PAD]", 17, "17"], r"place 2: '17' stands here a second time"),
    "a fraction": (["[PAD]", 1.5], r"place 1: 1\.5 is no id; ids are strings or whole numbers"),
    "half a character": (["[PAD]", "\ud83d"], r"place 1: '\\ud83d' is no id"),
    "code": (["[PAD]", Path("v1")], r"all_photos\.pkl, byte \d+: the pickle asks for \w*GLOBAL"),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_of_ids_that_cannot_be(raw: Path, case: str):
    content, message = LISTS[case]
    (raw / "all_photos.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        imported(raw, skip_bad_rows=True)


def test_a_missing_file_an_empty_split_and_settings_without_meaning(raw: Path):
    for name in sorted(path.name for path in raw.iterdir()):
        content = (raw / name).read_bytes()
        (raw / name).unlink()
        with pytest.raises(
            UserError, match=rf"{name} is missing; the raw folder must hold all_photos\.pkl, .*test"
        ):
            imported(raw)
        (raw / name).write_bytes(content)
    (raw / "photo.json").write_text('{"v1": \n{]}')
    with pytest.raises(UserError, match=r"photo\.json, line 2: not valid JSON"):
        imported(raw)
    write_official(raw, {key: rows for key, rows in small_lines().items() if key != (REC, Split.VAL)})
    with pytest.raises(UserError, match=r"rec\.val\.json holds no sample"):
        imported(raw)
    with pytest.raises(UserError, match=r"--user_core has no meaning for official"):
        imported(raw, user_core=2)


def test_ids_texts_and_lists_as_they_come_in_the_wild(raw: Path):
    """Numbers for ids, null and halves of characters in texts, a byte-order mark, blank lines, repeated comments."""
    (raw / "all_photos.pkl").write_bytes(pickle.dumps(["[PAD]", 2, 10, 1]))
    (raw / "all_comments.pkl").write_bytes(pickle.dumps(["[PAD]", 5, 7]))
    photos = {
        "1": {"title": None, "comment_list": [7, "5", 7]},
        "10": {"title": "half \ud83d", "comment_list": []},
        "2": {"title": "宠物 🐈", "comment_list": []},
    }
    (raw / "photo.json").write_text(json.dumps(photos))
    (raw / "comment.json").write_text(json.dumps({"5": {"content": ""}, "7": {"content": "x"}}))
    sample = line(3, [2, "10"], [], 1)
    for task, split in TABLES:
        own = sample | ({"pos_comments": [5, "5", 7]} if task is RANK else {"comment_inter_his": []})
        (raw / f"{task.value}.{split.value}.json").write_text(
            "\ufeff" + json.dumps(own) + "\n\n", encoding="utf-8"
        )
    dataset = imported(raw)
    assert dataset.raw_ids("videos").to_list() == ["2", "10", "1"]
    assert list(dataset.titles()) == ["", "宠物 🐈", "half \ufffd", ""]
    assert dataset.video_comments.row(3).tolist() == [2, 1]
    assert records(dataset, RANK, Split.TEST) == [("3", ("2", "10"), (), "1", ("5", "7"))]
    assert dataset.column("comments", "likes").to_list() == [None, None]
