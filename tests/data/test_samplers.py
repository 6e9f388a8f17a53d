"""Sampled negatives of Rec: who is drawn how often, and that the same rows always draw the same."""

import pickle

import numpy as np
import pytest

from lsvcr.data.rank import RankData
from lsvcr.data.samplers import (
    log_draw_probability,
    log_uniform_ranks,
    log_uniform_shares,
    popularity_order,
)
from lsvcr.data.store import Dataset
from lsvcr.schema import Split, Task
from lsvcr.training import rank_batches
from lsvcr.training.rank_batches import EpochBatches
from tests.rank_world import World

COUNTS = [3, 9, 0, 9, 5]
TARGETS = [2, 2, 4, 2, 5, 4, 1, 2]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Eight training samples; video 3 is nobody's target."""
    return World(
        n_videos=5,
        videos=[[1, 2, 3, 4, 5]],
        comments=[[]],
        video_of=[1],
        rec={Split.TRAIN: [(1, 1, 0, target) for target in TARGETS]},
        counts=COUNTS,
    ).write(tmp_path_factory.mktemp("samplers"))


def test_popularity_order_breaks_ties_by_index() -> None:
    assert popularity_order(np.array([0, *COUNTS])).tolist() == [2, 4, 5, 1, 3]


def test_log_uniform_shares_by_hand() -> None:
    """Three ranks: log 2, log 3/2 and log 4/3 over log 4."""
    expected = np.log([2, 3 / 2, 4 / 3]) / np.log(4)
    np.testing.assert_allclose(log_uniform_shares(3), expected, rtol=1e-14)
    for size in (1, 2, 7, 100_000):
        assert log_uniform_shares(size).sum() == pytest.approx(1)


def test_log_uniform_ranks_invert_the_shares() -> None:
    """A number falls on rank r exactly where the running sum of the shares says."""
    for size in (1, 3, 50):
        ends = np.cumsum(log_uniform_shares(size))
        starts = np.concatenate([[0.0], ends[:-1]])
        assert log_uniform_ranks(starts + 1e-9, size).tolist() == list(range(size))
        assert log_uniform_ranks(ends - 1e-9, size).tolist() == list(range(size))
        assert log_uniform_ranks(np.array([0.0, 1 - 2.0**-53]), size).tolist() == [0, size - 1]


def test_log_uniform_draws_come_as_often_as_their_probability_says(dataset: Dataset) -> None:
    data = RankData(dataset, Task.REC, Split.TRAIN, sampler="log_uniform")
    drawn = data.training(np.arange(2), (1, 0), 60_000).negatives.numpy()
    logs = log_draw_probability(dataset, "log_uniform")
    assert logs is not None and logs.dtype == np.float32
    found = np.bincount(drawn, minlength=6)[1:] / len(drawn)
    np.testing.assert_allclose(found, np.exp(logs[1:]), atol=0.01)
    assert found.argsort()[::-1].tolist() == [1, 3, 4, 0, 2]


def test_in_batch_negatives_are_the_targets_and_their_shares_those_of_the_other_samples(
    dataset: Dataset,
) -> None:
    data = RankData(dataset, Task.REC, Split.TRAIN, sampler="in_batch")
    batch = data.training(np.array([6, 0, 4]), (1, 0))
    assert batch.negatives.tolist() == [1, 2, 5]
    assert batch.negatives.tolist() == batch.candidates[:, 0].tolist()
    logs = log_draw_probability(dataset, "in_batch")
    assert logs is not None
    # Of seven other samples: target 1 once, 2 four times, 4 twice, 5 once. Video 3 cannot be drawn.
    np.testing.assert_allclose(np.exp(logs[[1, 2, 4, 5]]) * 7, [1, 4, 2, 1], rtol=1e-6)
    assert np.isfinite(logs).all()


def test_uniform_draws_have_no_correction(dataset: Dataset) -> None:
    assert log_draw_probability(dataset, "uniform") is None


@pytest.mark.parametrize("sampler", ["uniform", "log_uniform", "in_batch"])
def test_draws_are_a_function_of_seed_epoch_and_first_row(dataset: Dataset, sampler: str) -> None:
    data = RankData(dataset, Task.REC, Split.TRAIN, sampler=sampler)

    def drawn(rows: list[int], keys: tuple[int, int] = (1, 0)) -> list[int]:
        return data.training(np.array(rows), keys, 40).negatives.tolist()

    assert drawn([3, 1, 2]) == drawn([3, 1, 2])
    if sampler != "in_batch":
        assert drawn([3, 1, 2]) == drawn([3, 5])
        assert len({tuple(drawn(*x)) for x in (([3],), ([4],), ([3], (1, 1)), ([3], (2, 0)))}) == 4


@pytest.mark.parametrize("sampler", ["uniform", "log_uniform", "in_batch"])
def test_processes_and_accumulation_see_the_same_batches(
    dataset: Dataset, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes of two rows a micro-step, and one process that accumulates twice: full steps are cut alike."""
    data = RankData(dataset, Task.REC, Split.TRAIN, sampler=sampler)

    def batches(processes: int, process: int, accumulation: int) -> list[tuple[list[int], list[int]]]:
        with monkeypatch.context() as patch:
            patch.setattr(rank_batches, "world_size", lambda: processes)
            patch.setattr(rank_batches, "rank", lambda: process)
            epoch = EpochBatches(data, batch=2, accumulation=accumulation, seed=1, epoch=3, negatives=6)
            made = [epoch[i].batch for i in range(len(epoch))]
        return [(batch.rows.tolist(), batch.negatives.tolist()) for batch in made]

    alone = batches(1, 0, 2)
    first, second = batches(2, 0, 1), batches(2, 1, 1)
    assert alone == [pair for both in zip(first, second, strict=True) for pair in both]


def test_a_worker_process_draws_the_same(dataset: Dataset) -> None:
    """It gets a pickled copy."""
    data = RankData(dataset, Task.REC, Split.TRAIN, sampler="log_uniform")
    copy = pickle.loads(pickle.dumps(data))
    first, again = (x.training(np.arange(3), (1, 0), 9).negatives.tolist() for x in (data, copy))
    assert first == again
