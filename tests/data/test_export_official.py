import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsvcr.data.audit import audit
from lsvcr.data.export_official import export_official
from lsvcr.data.prepare import prepare
from lsvcr.data.simulation import simulate
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.schema import Task
from lsvcr.settings import PrepareSettings, SimulateSettings
from lsvcr.utils.errors import UserError
from tests.data.raw_files import small_kuaicomt, write_kuaicomt
from tests.data.raw_official import TABLES, record_of, records, without_number


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people of whom two touch comments."""
    root = tmp_path_factory.mktemp("export")
    return prepare(PrepareSettings(raw=str(small_kuaicomt(root / "raw")), out=str(root / "data")))


def imported(export: Path) -> Dataset:
    settings = PrepareSettings(source="official", raw=str(export), out=str(export.parent / "again"))
    return open_dataset(prepare(settings), verify=True)


def lines(path: Path) -> list[dict]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def assert_same(before: Dataset, after: Dataset) -> None:
    """The same catalogue and the same samples, row by row, as one chain a user."""
    for task, split in TABLES:
        assert records(after, task, split) == records(before, task, split)
    for kind in ("videos", "comments"):
        assert after.raw_ids(kind).to_list() == list(map(str, before.raw_ids(kind)))
    assert list(after.titles()) == list(before.titles()) and list(after.contents()) == list(before.contents())
    for name in ("offsets", "items"):
        assert np.array_equal(getattr(after.video_comments, name), getattr(before.video_comments, name))


def assert_times_fit(dataset: Dataset) -> None:
    """Targets lie at their cuts, and a history is all that its user did before."""
    for task, split in TABLES:
        samples = dataset.samples(task, split)
        for side, events, end in (
            (Task.REC, dataset.video_events, samples.video_end),
            (Task.COMM_RANK, dataset.comment_events, samples.comment_end),
        ):
            more = end < events.offsets[samples.user + 1]
            assert (events.times[end[more]] >= samples.cut[more]).all()
            if side is task:
                assert more.all() and (events.times[end] == samples.cut).all()


def test_files_are_the_official_ones(data: Path, tmp_path: Path):
    out = export_official(data, tmp_path / "out")
    assert pickle.loads((out / "all_photos.pkl").read_bytes()) == ["[PAD]", *map(str, range(1, 9))]
    assert pickle.loads((out / "all_comments.pkl").read_bytes())[:4] == ["[PAD]", "11", "12", "13"]
    photos, texts = (json.loads((out / name).read_text()) for name in ("photo.json", "comment.json"))
    assert photos["3"] == {"title": "video 3", "comment_list": ["31", "32", "33"]} and len(photos) == 8
    assert texts["32"] == {"content": "comment 2 of 3"} and len(texts) == 24
    assert lines(out / "rec.val.json")[0] == {
        "user_id": "7",
        "target_photo": "5",
        "photo_inter_his": ["1", "2", "3", "4"],
        "comment_inter_his": [["1", "2", "3"], [["11"], ["21", "22"], ["31"]]],
    }
    # User 7's like of 2 at 20.007 s lies between the first comment, at 15 s, and those of video 2, at 25 s and 26 s.
    assert lines(out / "rec.train.json")[0]["comment_inter_his"] == [["1"], [["11"]]]
    assert lines(out / "comm_rank.val.json")[0] == {
        "user_id": "7",
        "target_photo": "2",
        "photo_inter_his": ["1", "2"],
        "comment_inter_his": [["1"], [["11"]]],
        "pos_comments": ["21", "22"],
    }
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["kind"] == "official-export" and manifest["samples"]["rec.test.json"] == 3
    assert manifest["data_hash"] == open_dataset(data).data_hash and manifest["text_vectors"] == []


@pytest.mark.parametrize("split", ["leave-last", "temporal"])
def test_there_and_back_again(tiny_raw: Path, tmp_path: Path, split):
    before = open_dataset(
        prepare(PrepareSettings(raw=str(tiny_raw), out=str(tmp_path / "data"), user_core=3, split=split))
    )
    after = imported(export_official(before.root, tmp_path / "out"))
    assert_same(before, after)
    assert_times_fit(after)
    assert [check.name for check in audit(after) if check.failed] == []


def test_a_simulated_world_there_and_back_again(tmp_path: Path):
    simulate(SimulateSettings(out=str(tmp_path / "raw"), preset="tiny", language="zh"))
    before = open_dataset(prepare(PrepareSettings(raw=str(tmp_path / "raw"), out=str(tmp_path / "data"))))
    after = imported(export_official(before.root, tmp_path / "out"))
    assert_same(before, after)
    assert_times_fit(after)
    assert after.n_users == after.manifest["counts"]["raw"]["people"]
    assert np.array_equal(after.train_counts(), before.train_counts())


acts = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(0, 12)), min_size=12, max_size=50)


@settings(max_examples=50, deadline=None)
@given(likes=acts, touches=acts, split=st.sampled_from(["leave-last", "temporal"]))
def test_equal_times_and_cut_entries_survive(tmp_path_factory: pytest.TempPathFactory, likes, touches, split):
    root = tmp_path_factory.mktemp("ties")
    comments = {10 * video + k: (video, "text", k) for video in range(1, 9) for k in range(3)}
    raw = write_kuaicomt(
        root / "raw",
        likes=[(user, video, 1000 * time) for user, video, time in likes],
        touches=[(user, 10 * (video % 3 + 1) + video % 2, time) for user, video, time in touches],
        videos={video: f"video {video}" for video in range(1, 9)},
        comments=comments,
        users=[1, 2, 3],
    )
    try:
        path = prepare(PrepareSettings(raw=str(raw), out=str(root / "data"), user_core=0, split=split))
    except UserError:
        return  # too few different times for three splits
    before = open_dataset(path)
    after = imported(export_official(path, root / "out"))
    assert_same(before, after)
    assert_times_fit(after)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_max_history_keeps_the_latest_entries(data: Path, tmp_path: Path, limit: int):
    whole = export_official(data, tmp_path / "whole")
    short = export_official(data, tmp_path / "short", max_history=limit)
    for task, split in TABLES:
        name = f"{task.value}.{split.value}.json"
        for full, cut in zip(lines(whole / name), lines(short / name), strict=True):
            full["photo_inter_his"] = full["photo_inter_his"][-limit:]
            full["comment_inter_his"] = [part[-limit:] for part in full["comment_inter_his"]]
            assert cut == full
    after = imported(short)
    for task, split in TABLES:
        found = list(map(without_number, records(after, task, split)))
        assert found == list(map(record_of, lines(short / f"{task.value}.{split.value}.json")))
    assert after.n_users > 3


def test_text_vectors_go_along(data: Path, tmp_path: Path):
    vectors = {
        name: np.random.default_rng(3).random((rows, 4)) for name, rows in (("photo", 9), ("comment", 25))
    }
    (tmp_path / "vectors").mkdir()
    for name, rows in vectors.items():
        np.save(tmp_path / "vectors" / f"{name}_embs.npy", rows)
    out = export_official(data, tmp_path / "out", embeddings=tmp_path / "vectors")
    for name, rows in vectors.items():
        found = np.load(out / f"{name}_embs.npy")
        assert found.dtype == np.float32 and np.array_equal(found, rows.astype(np.float32))
    assert not list(export_official(data, tmp_path / "out").glob("*.npy")), "the dataset's folder has none"
    np.save(tmp_path / "vectors" / "comment_embs.npy", vectors["photo"])
    with pytest.raises(UserError, match=r"comment_embs\.npy has 9 rows, but this dataset needs 25"):
        export_official(data, tmp_path / "out", embeddings=tmp_path / "vectors")
    (tmp_path / "vectors" / "photo_embs.npy").unlink()
    with pytest.raises(UserError, match=r"no text vectors at .*photo_embs\.npy"):
        export_official(data, tmp_path / "out", embeddings=tmp_path / "vectors")
    assert (out / "rec.test.json").is_file(), "what was there stays"


def test_vectors_beside_the_dataset_are_found(data: Path, tmp_path: Path):
    np.save(data / "comment_embs.npy", np.ones((25, 2), np.float32))
    try:
        out = export_official(data, tmp_path / "out")
    finally:
        (data / "comment_embs.npy").unlink()
    assert np.load(out / "comment_embs.npy").shape == (25, 2) and not (out / "photo_embs.npy").exists()


def test_vectors_that_do_not_fit_the_disk_are_told(data: Path, tmp_path: Path, small_disk: Path):
    """In a process of its own: writing to a map of a full disk would kill it."""
    vectors = tmp_path / "vectors"
    vectors.mkdir()
    np.save(vectors / "photo_embs.npy", np.ones((9, 8), np.float32))
    np.save(vectors / "comment_embs.npy", np.ones((25, 12_000), np.float32))
    words = ["export-official", str(data), "--out", str(small_disk / "out"), "--embeddings", str(vectors)]
    done = subprocess.run(
        [sys.executable, "-m", "lsvcr", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "out: no space left" in done.stderr
    assert list(small_disk.iterdir()) == []


def test_only_an_export_or_an_empty_folder_is_written_over(data: Path, tmp_path: Path):
    export_official(data, tmp_path)
    export_official(data, tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        UserError, match=r"holds other files than an official export: notes\.txt\. .* empty one"
    ):
        export_official(data, tmp_path)
    assert (tmp_path / "notes.txt").exists()
    with pytest.raises(UserError, match=r"holds other files than an official export: "):
        export_official(data, data)
    with pytest.raises(UserError, match=r"--max_history must not be negative"):
        export_official(data, tmp_path, max_history=-1)
    with pytest.raises(UserError, match=r"not a prepared dataset; make one with"):
        export_official(tmp_path, tmp_path.parent / "other")
