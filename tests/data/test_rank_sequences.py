"""Training sequences: what they hold, what they must not hold, and that nothing but keys decides the draws."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lsvcr.data.prepare import prepare
from lsvcr.data.rank_sequences import SequenceData, known_ends, known_events
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.schema import Split, Task
from lsvcr.settings import PrepareSettings
from tests.rank_world import World
from tests.tiny_world import HOUR_MS, START_MS


def world(folder: Path, videos: list[list[int]], held: dict[Split, list[int]]) -> Dataset:
    """Users like `videos`; `held` says at which place each user's held-out sample is, -1 = none."""
    rec = {
        split: [(u + 1, at, 0, videos[u][at]) for u, at in enumerate(places) if at >= 0]
        for split, places in held.items()
    }
    made = World(30, videos, [[] for _ in videos], video_of=[1], rec=rec).write(folder)
    return replace(made, manifest={**made.manifest, "split": {"name": "leave-last", "cut_times": None}})


@pytest.fixture
def three(tmp_path: Path) -> Dataset:
    """Users with 7, 3 and 2 known videos, and one with nothing held out."""
    videos = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [11, 12, 13, 14], [21, 22], [15, 16, 17]]
    return world(tmp_path, videos, {Split.VAL: [7, -1, -1, -1], Split.TEST: [8, 3, 1, -1]})


def test_a_row_is_the_latest_of_a_users_known_videos(three: Dataset) -> None:
    """User 3 has one known video and so no target; padding is on the right."""
    data = SequenceData(three, 4)
    assert data.users.tolist() == [1, 2, 4] and len(data) == 3
    batch = data.training(np.arange(3), (0, 0))
    assert batch.video_ids.tolist() == [[3, 4, 5, 6], [11, 12, 0, 0], [15, 16, 0, 0]]
    assert batch.targets.tolist() == [[4, 5, 6, 7], [12, 13, 0, 0], [16, 17, 0, 0]]
    assert batch.times.tolist() == [[2, 3, 4, 5], [9, 10, 0, 0], [15, 16, 0, 0]]
    assert batch.next_times.tolist() == [[3, 4, 5, 6], [10, 11, 0, 0], [16, 17, 0, 0]]
    assert batch.negatives.shape == (0,) and batch.rows.tolist() == [0, 1, 2]
    assert data.terms(np.arange(3), (0, 0)) == 8 and data.terms(np.array([1]), (0, 0)) == 2


def test_windows_make_every_video_but_the_first_a_target_once(three: Dataset) -> None:
    data = SequenceData(three, 4, windows=True)
    batch = data.training(np.arange(len(data)), (0, 0))
    assert data.users.tolist() == [1, 1, 2, 4]
    assert batch.targets.tolist() == [[2, 3, 0, 0], [4, 5, 6, 7], [12, 13, 0, 0], [16, 17, 0, 0]]
    assert batch.video_ids.tolist() == [[1, 2, 0, 0], [3, 4, 5, 6], [11, 12, 0, 0], [15, 16, 0, 0]]


@pytest.mark.parametrize(("share", "shape"), [("position", (3, 4, 2)), ("sequence", (3, 2)), ("batch", (2,))])
def test_negatives_are_a_function_of_keys_and_row(three: Dataset, share: str, shape: tuple[int, ...]) -> None:
    data = SequenceData(three, 4, share=share)
    batch = data.training(np.arange(3), (5, 1), 2)
    assert batch.negatives.shape == shape
    assert int(batch.negatives.min()) >= 1 and int(batch.negatives.max()) <= 30
    assert torch.equal(batch.negatives, data.training(np.arange(3), (5, 1), 2).negatives)
    assert not torch.equal(batch.negatives, data.training(np.arange(3), (5, 2), 2).negatives)
    # Another batch, of another width.
    alone = data.training(np.array([1]), (5, 1), 2).negatives
    if share == "position":
        assert torch.equal(alone[0], batch.negatives[1, :2])
    elif share == "sequence":
        assert torch.equal(alone[0], batch.negatives[1])


def test_negatives_are_drawn_from_all_videos_alike(three: Dataset) -> None:
    drawn = SequenceData(three, 4, share="sequence").training(np.array([0]), (1, 1), 30_000).negatives
    counts = torch.bincount(drawn.flatten(), minlength=31)
    assert counts[0] == 0 and abs(counts[1:].float() - 1000).max() < 150


def test_sequences_hold_exactly_what_the_training_samples_know(tiny_data: Path) -> None:
    """leave-last without ties: histories and targets of the training samples are the known videos."""
    dataset = open_dataset(tiny_data)
    train = dataset.samples(Task.REC, Split.TRAIN)
    ends = known_ends(dataset)
    last = np.zeros(dataset.n_users + 1, dtype=np.int64)
    np.maximum.at(last, train.user, train.video_end + 1)
    assert np.array_equal(ends[1:], last[1:])
    counts = np.bincount(dataset.video_events.items[known_events(dataset)], minlength=dataset.n_videos + 1)
    assert np.array_equal(counts, dataset.train_counts())


@pytest.mark.parametrize("split", ["leave-last", "temporal"])
def test_ties_and_times_keep_to_what_training_may_know(tmp_path: Path, split: str) -> None:
    """Random times of which many are equal: known videos are those that `train_counts` counts."""
    from tests.tiny_world import write_raw

    raw = write_raw(tmp_path / "raw")
    path = raw / "user_video_inter.csv"
    header, *rows = path.read_text().splitlines()
    rng = np.random.default_rng(0)
    lines = [header]
    for row in rows:
        cells = row.split(",")
        cells[2] = str(float(START_MS + int(rng.integers(0, 8)) * HOUR_MS))
        lines.append(",".join(cells))
    path.write_text("\n".join(lines) + "\n")
    shares = {"val_share": 0.3, "test_share": 0.3}
    chosen = PrepareSettings(raw=str(raw), out=str(tmp_path / "data"), user_core=3, split=split, **shares)
    dataset = open_dataset(prepare(chosen))
    known = known_events(dataset)
    assert len(known) > 30
    counts = np.bincount(dataset.video_events.items[known], minlength=dataset.n_videos + 1)
    assert np.array_equal(counts, dataset.train_counts())
    cuts = dataset.manifest["split"]["cut_times"]
    if cuts is not None:
        assert dataset.video_events.times[known].max() < cuts["val"]
    train = dataset.samples(Task.REC, Split.TRAIN)
    ends = known_ends(dataset)
    assert np.all(train.video_end <= ends[train.user])
    for part in (Split.VAL, Split.TEST):
        held = dataset.samples(Task.REC, part)
        inside = [
            int(video) in dataset.video_events.items[end:stop].tolist()
            for video, end, stop in zip(held.video, held.video_end, ends[held.user], strict=True)
        ]
        assert not any(inside)
