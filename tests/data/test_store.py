import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lsvcr.data.prepare import prepare
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.schema import Split, Task
from lsvcr.settings import PrepareSettings
from lsvcr.utils.errors import UserError
from tests.data.raw_files import START_MS, small_kuaicomt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    raw = small_kuaicomt(root / "raw")
    return prepare(PrepareSettings(raw=str(raw), out=str(root / "data"), candidates=4))


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return open_dataset(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "data"))


def test_counts_and_ids(dataset: Dataset):
    assert (dataset.n_users, dataset.n_videos, dataset.n_comments) == (3, 8, 24)
    assert dataset.raw_ids("users").to_list() == [7, 8, 1000]
    assert dataset.raw_ids("videos").to_list() == list(range(1, 9))
    assert dataset.raw_ids("comments")[0] == 11
    assert dataset.column("videos", "author")[0] == "901"
    with pytest.raises(UserError, match="no column 'colour'; it has raw_id"):
        dataset.column("videos", "colour")


def test_texts_by_index(dataset: Dataset):
    titles, contents = dataset.titles(), dataset.contents()
    assert (len(titles), len(contents)) == (9, 25)
    assert [titles[0], titles[1], titles[8]] == ["", "video 1", "video 8"]
    assert contents.take(np.array([2, 0, 24])) == ["comment 2 of 1", "", "comment 3 of 8"]
    assert list(titles) == ["", *(f"video {v}" for v in range(1, 9))]
    assert titles.take([]) == []


def test_samples_of_one_user_by_hand(dataset: Dataset):
    """User 7 is user 1: likes 1 to 6 at 10.007 s ... 60.007 s; touches 11 | 21 22 | 31 at 15 | 25 26 | 35 s."""
    train, val, test = (dataset.samples(Task.REC, split) for split in Split)
    assert train.positives is None
    own = train.rows[train.user == 1]
    assert own["video"].tolist() == [2, 3, 4]
    assert own["cut"].tolist() == [START_MS + v * 10_000 + 7 for v in (2, 3, 4)]
    assert own["video_end"].tolist() == [1, 2, 3]
    assert own["comment_end"].tolist() == [1, 3, 4]
    assert [val.video[0], val["video"][0], test.video[0]] == [5, 5, 6]
    rank = dataset.samples("comm_rank", "test")
    assert len(rank) == 3 and rank.positives is not None
    assert [rank.video[0], rank.video_end[0], rank.comment_end[0]] == [3, 3, 3]
    assert rank.positives.row(0).tolist() == [7]
    val_rank = dataset.samples("comm_rank", "val")
    assert val_rank.positives is not None
    assert val_rank.positives.row(0).tolist() == [4, 5]
    assert dataset.comment_events.groups[:4].tolist() == [0, 1, 1, 2]
    assert dataset.train_counts().tolist() == [0, 3, 3, 3, 3, 0, 0, 0, 0]
    assert dataset.comment_train_counts().sum() == 1, "only user 7's first comment is left for training"


def test_candidates_follow_the_samples(dataset: Dataset):
    for task in Task:
        for split in (Split.VAL, Split.TEST):
            samples, stored = dataset.samples(task, split), dataset.candidates(task, split)
            assert len(stored.offsets) == len(samples) + 1
            for i in range(len(samples)):
                own = [samples.video[i]] if samples.positives is None else samples.positives.row(i)
                assert np.isin(own, stored.row(i)).all()
    with pytest.raises(ValueError, match="val and test"):
        dataset.candidates("rec", "train")


def test_arrays_are_mapped_read_only(dataset: Dataset):
    assert dataset.impressions is not None
    arrays = [*dataset.video_events, *dataset.comment_events, *dataset.video_comments, *dataset.impressions]
    arrays += [dataset.samples("rec", "train").rows, dataset.candidates("comm_rank", "val").items]
    for array in arrays:
        assert isinstance(array, np.memmap) or isinstance(array.base, np.memmap)
        assert not array.flags.writeable
    assert [array.dtype for array in dataset.comment_events] == [
        np.int64,
        np.int32,
        np.int32,
        np.int64,
        np.int32,
    ]


def test_a_worker_receives_the_path_not_the_arrays(dataset: Dataset):
    message = pickle.dumps(dataset)
    assert len(message) < 1000
    assert pickle.loads(message).data_hash == dataset.data_hash


def test_opening_is_fast_and_loads_neither_torch_nor_polars(folder: Path):
    script = (
        "import sys, time\nfrom lsvcr.data.store import open_dataset\nstarted = time.perf_counter()\n"
        "open_dataset(sys.argv[1])\nassert 'torch' not in sys.modules and 'polars' not in sys.modules\n"
        "print(time.perf_counter() - started)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.5


def test_what_is_no_dataset_says_so(copy: Path, tmp_path: Path):
    with pytest.raises(UserError, match="does not exist; make one with `lsvcr prepare"):
        open_dataset(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not a prepared dataset"):
        open_dataset(tmp_path / "empty")
    (tmp_path / "empty" / "manifest.json").write_text('{"kind": "checkpoint"}')
    with pytest.raises(UserError, match="another kind of artefact"):
        open_dataset(tmp_path / "empty")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"format": 0}))
    with pytest.raises(UserError, match="format version 0, this release reads 1; prepare it again"):
        open_dataset(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json, line 1"):
        open_dataset(copy)


def test_missing_and_changed_files_are_named(copy: Path):
    items = copy / "events" / "video_items.npy"
    content = items.read_bytes()
    items.write_bytes(content[:-4] + b"\x01\x00\x00\x00")
    open_dataset(copy)
    with pytest.raises(UserError, match=r"video_items\.npy has changed since it was prepared"):
        open_dataset(copy, verify=True)
    items.write_bytes(content[:-4])
    with pytest.raises(UserError, match=r"video_items\.npy has changed"):
        open_dataset(copy)
    items.unlink()
    with pytest.raises(UserError, match=r"video_items\.npy is missing"):
        open_dataset(copy)


def test_the_hash_tells_datasets_apart(folder: Path, tmp_path: Path):
    raw = folder.parent / "raw"
    same = prepare(PrepareSettings(raw=str(raw), out=str(tmp_path / "same"), candidates=4))
    other = prepare(PrepareSettings(raw=str(raw), out=str(tmp_path / "other"), candidates=4, seed=1))
    hashes = [open_dataset(path, verify=True).data_hash for path in (folder, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_manifest_says_what_was_done(dataset: Dataset):
    manifest = dataset.manifest
    assert manifest["source"] == "kuaicomt" and manifest["options"]["user_core"] == 5
    counts = manifest["counts"]
    assert counts["raw"]["impressions"] == 36 and counts["raw"]["likes"] == 18
    assert counts["samples"]["rec"] == {"train": 9, "val": 3, "test": 3}
    assert counts["samples"]["comm_rank"] == {"train": 1, "val": 2, "test": 3}
    assert set(manifest["files"]) == {
        path.relative_to(dataset.root).as_posix()
        for path in dataset.root.rglob("*.*")
        if path.name != "manifest.json"
    }
    assert manifest["skipped_rows"] == {}


KILLED = """
import sys, time
from lsvcr.data import prepare as module
from lsvcr.settings import PrepareSettings
def wait(path):
    print("writing", flush=True)
    time.sleep(60)
module.sha256_file = wait
module.prepare(PrepareSettings(raw=sys.argv[1], out=sys.argv[2], seed=9))
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
@pytest.mark.parametrize("before", ["old", "none"])
def test_a_killed_run_leaves_the_old_dataset_or_none(
    folder: Path, copy: Path, before: str, sent: signal.Signals
):
    if before == "none":
        shutil.rmtree(copy)
    raw = folder.parent / "raw"
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(raw), str(copy)],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdout is not None and child.stdout.readline() == b"writing\n"
    child.send_signal(sent)
    child.wait()
    child.stdout.close()
    if before == "old":
        assert open_dataset(copy, verify=True).data_hash == open_dataset(folder).data_hash
    else:
        assert not copy.exists()
    prepare(PrepareSettings(raw=str(raw), out=str(copy), seed=9))
    assert open_dataset(copy, verify=True).manifest["options"]["seed"] == 9
    assert [path.name for path in copy.parent.iterdir()] == ["data"]


def test_opening_a_dataset_takes_milliseconds(folder: Path):
    open_dataset(folder)
    started = time.perf_counter()
    open_dataset(folder)
    assert time.perf_counter() - started < 0.5
