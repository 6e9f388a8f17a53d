"""Wide batches: which texts are read, which samples learn from them, and the numbering of a batch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lsvcr.data.rank import RankData
from lsvcr.data.rank_wide import COMMENTS_READ, WideBatch, WideStream
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.data.text_bank import TextBank
from lsvcr.schema import Split, Task


@pytest.fixture(scope="module")
def dataset(tiny_data: Path) -> Dataset:
    return open_dataset(tiny_data)


def stream(
    dataset: Dataset, groups: int = 4, per_group: int = 2, seed: int = 0, task: Task = Task.REC
) -> WideStream:
    bank = TextBank(dataset.titles(), dataset.contents(), lambda texts: [list(map(ord, t)) for t in texts])
    return WideStream(data_of(dataset, task), bank, groups=groups, per_group=per_group, seed=seed)


def data_of(dataset: Dataset, task: Task) -> RankData:
    return RankData(dataset, task, Split.TRAIN, max_videos=5, max_entries=3)


def indices_of(batch: WideBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Dataset index of each video number and of each comment number of the batch."""
    none = torch.zeros(1, dtype=torch.int64)
    if batch.task is Task.REC:
        return torch.cat([none, batch.fresh, batch.cached_videos]), torch.cat([none, batch.cached_comments])
    return torch.cat([none, batch.cached_videos]), torch.cat([none, batch.fresh, batch.cached_comments])


def test_a_round_reads_no_title_twice_and_all_are_read_in_the_end(dataset: Dataset) -> None:
    wide = stream(dataset)
    targets = set(dataset.samples(Task.REC, Split.TRAIN).video.tolist())
    assert len(wide) == len(targets)
    turns = len(wide) // 4
    read = [wide.batch(number, 0, 1).fresh.numpy() for number in range(8 * turns)]
    for first in range(0, len(read), turns):
        round_ = np.concatenate(read[first : first + turns])
        assert len(np.unique(round_)) == len(round_) == 4 * turns
    assert set(np.concatenate(read).tolist()) == targets


def test_samples_are_training_samples_whose_target_is_read(dataset: Dataset) -> None:
    batch = stream(dataset).batch(0, 0, 1)
    samples = dataset.samples(Task.REC, Split.TRAIN)
    rows = batch.samples.rows.numpy()
    own = indices_of(batch)[0][batch.samples.candidates[:, 0]].numpy()
    assert (own == samples.video[rows]).all()
    assert (batch.samples.candidates[:, 0] <= len(batch.fresh)).all()
    _, counts = np.unique(own, return_counts=True)
    assert counts.max() <= 2
    assert len(np.unique(rows)) == len(rows)


@pytest.mark.parametrize("task", Task)
def test_numbers_stand_for_the_videos_and_comments_of_the_dataset(dataset: Dataset, task: Task) -> None:
    batch = stream(dataset, task=task).batch(1, 0, 1)
    plain = data_of(dataset, task).training(batch.samples.rows.numpy(), (0, 1))
    videos, comments = indices_of(batch)
    assert torch.equal(videos[batch.samples.videos], plain.videos)
    for name in ("video_ids", "entry_videos"):
        assert torch.equal(videos[getattr(batch.samples, name)], getattr(plain, name)), name
    for name in ("video_comments", "comments"):
        assert torch.equal(comments[getattr(batch.samples, name)], getattr(plain, name)), name
    target = (videos if task is Task.REC else comments)[batch.samples.candidates[:, 0]]
    assert torch.equal(target, plain.candidates[:, 0])
    shown = batch.samples.video_ids if task is Task.REC else batch.samples.comments
    assert shown[shown > 0].min() > len(batch.fresh)  # of the cache, wherever the fresh state is
    assert batch.samples.candidates.max() <= len(batch.fresh)


def test_comments_compete_with_others_of_their_video_that_are_no_positives(dataset: Dataset) -> None:
    wide = stream(dataset, task=Task.COMM_RANK)
    samples, others = dataset.samples(Task.COMM_RANK, Split.TRAIN), 0
    for number in range(10):
        batch = wide.batch(number, 0, 1)
        comments = indices_of(batch)[1]
        for row, candidates in zip(
            batch.samples.rows.tolist(), comments[batch.samples.candidates].tolist(), strict=True
        ):
            every = set(dataset.video_comments.row(int(samples.video[row])).tolist())
            positives = set(samples.positives.row(row).tolist())
            negatives = [comment for comment in candidates[1:] if comment]
            assert candidates[0] in positives
            assert set(negatives) <= every - positives
            assert len(set(negatives)) == len(negatives) <= COMMENTS_READ
            others += len(negatives)
    assert others


def test_a_round_of_watched_videos_covers_every_sample_that_can_learn(dataset: Dataset) -> None:
    wide = stream(dataset, groups=1, task=Task.COMM_RANK)
    samples = dataset.samples(Task.COMM_RANK, Split.TRAIN)
    rows = np.concatenate([wide.batch(number, 0, 1).samples.rows.numpy() for number in range(len(wide))])
    comments = np.array([len(dataset.video_comments.row(int(video))) for video in samples.video])
    assert sorted(rows.tolist()) == np.flatnonzero(comments > 1).tolist()


@pytest.mark.parametrize("task", Task)
def test_texts_are_the_fresh_ones_tokens(dataset: Dataset, task: Task) -> None:
    batch = stream(dataset, task=task).batch(0, 0, 1)
    every = dataset.titles() if task is Task.REC else dataset.contents()
    assert ["".join(map(chr, text)) for text in batch.texts] == every.take(batch.fresh.tolist())
    assert batch.tokens == sum(map(len, batch.texts))


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("number", [0, 3, 50])
def test_two_processes_share_the_batch_of_one(dataset: Dataset, number: int, task: Task) -> None:
    whole = stream(dataset, task=task).batch(number, 0, 1)
    halves = [stream(dataset, task=task).batch(number, rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat([half.fresh for half in halves]).unique(), whole.fresh)
    assert torch.equal(torch.cat([half.samples.rows for half in halves]), whole.samples.rows)


def test_a_batch_is_a_function_of_seed_and_number(dataset: Dataset) -> None:
    again, other = stream(dataset).batch(7, 0, 1), stream(dataset, seed=1).batch(7, 0, 1)
    assert torch.equal(stream(dataset).batch(7, 0, 1).samples.rows, again.samples.rows)
    assert not torch.equal(other.fresh, again.fresh)


def test_more_titles_than_there_are_means_all_of_them(dataset: Dataset) -> None:
    wide = stream(dataset, groups=1000)
    for number in range(3):
        assert sorted(wide.batch(number, 0, 1).fresh.tolist()) == sorted(
            set(dataset.samples(Task.REC, Split.TRAIN).video.tolist())
        )
