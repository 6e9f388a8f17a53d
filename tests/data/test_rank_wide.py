"""Wide Rec batches: which titles are read, which samples learn from them, and the numbering of a batch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lsvcr.data.rank import RankData
from lsvcr.data.rank_wide import WideBatch, WideStream
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.data.text_bank import TextBank
from lsvcr.schema import Split, Task


@pytest.fixture(scope="module")
def dataset(tiny_data: Path) -> Dataset:
    return open_dataset(tiny_data)


def stream(dataset: Dataset, titles: int = 4, per_title: int = 2, seed: int = 0) -> WideStream:
    bank = TextBank(dataset.titles(), dataset.contents(), lambda texts: [list(map(ord, t)) for t in texts])
    return WideStream(rec_data(dataset), bank, titles=titles, per_title=per_title, seed=seed)


def rec_data(dataset: Dataset) -> RankData:
    return RankData(dataset, Task.REC, Split.TRAIN, max_videos=5, max_entries=3)


def indices_of(batch: WideBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Dataset index of each video number and of each comment number of the batch."""
    none = torch.zeros(1, dtype=torch.int64)
    return torch.cat([none, batch.codes // 2, batch.cached_videos]), torch.cat([none, batch.cached_comments])


def test_all_targets_are_read_in_the_end(dataset: Dataset) -> None:
    wide = stream(dataset)
    targets = set(dataset.samples(Task.REC, Split.TRAIN).video.tolist())
    assert len(wide) == len(targets)
    read = [wide.batch(number, 0, 1).codes // 2 for number in range(8 * (len(wide) // 4))]
    assert set(torch.cat(read).tolist()) == targets


def test_samples_are_training_samples_whose_target_is_read(dataset: Dataset) -> None:
    batch = stream(dataset).batch(0, 0, 1)
    samples = dataset.samples(Task.REC, Split.TRAIN)
    rows = batch.samples.rows.numpy()
    own = indices_of(batch)[0][batch.samples.candidates[:, 0]].numpy()
    assert (own == samples.video[rows]).all()
    assert (batch.samples.candidates[:, 0] <= len(batch.codes)).all()
    _, counts = np.unique(own, return_counts=True)
    assert counts.max() <= 2
    assert len(np.unique(rows)) == len(rows)


def test_numbers_stand_for_the_videos_and_comments_of_the_dataset(dataset: Dataset) -> None:
    batch = stream(dataset).batch(1, 0, 1)
    plain = rec_data(dataset).training(batch.samples.rows.numpy(), (0, 1))
    videos, comments = indices_of(batch)
    assert torch.equal(videos[batch.samples.videos], plain.videos)
    for name in ("video_ids", "entry_videos"):
        assert torch.equal(videos[getattr(batch.samples, name)], getattr(plain, name)), name
    for name in ("video_comments", "comments"):
        assert torch.equal(comments[getattr(batch.samples, name)], getattr(plain, name)), name
    assert torch.equal(videos[batch.samples.candidates[:, 0]], plain.candidates[:, 0])
    shown = batch.samples.video_ids
    assert shown[shown > 0].min() > len(batch.codes)  # of the cache, wherever the fresh state is
    assert batch.samples.candidates.max() <= len(batch.codes)


def test_texts_are_the_fresh_ones_tokens(dataset: Dataset) -> None:
    batch = stream(dataset).batch(0, 0, 1)
    assert ["".join(map(chr, text)) for text in batch.texts] == dataset.titles().take(
        (batch.codes // 2).tolist()
    )
    assert batch.tokens == sum(map(len, batch.texts))


@pytest.mark.parametrize("number", [0, 3, 50])
def test_two_processes_share_the_batch_of_one(dataset: Dataset, number: int) -> None:
    whole = stream(dataset).batch(number, 0, 1)
    halves = [stream(dataset).batch(number, rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat([half.codes for half in halves]).unique(), whole.codes)
    assert torch.equal(torch.cat([half.samples.rows for half in halves]), whole.samples.rows)


def test_a_batch_is_a_function_of_seed_and_number(dataset: Dataset) -> None:
    again, other = stream(dataset).batch(7, 0, 1), stream(dataset, seed=1).batch(7, 0, 1)
    assert torch.equal(stream(dataset).batch(7, 0, 1).samples.rows, again.samples.rows)
    assert not torch.equal(other.codes, again.codes)


def test_more_titles_than_there_are_means_all_of_them(dataset: Dataset) -> None:
    targets = sorted(set(dataset.samples(Task.REC, Split.TRAIN).video.tolist()))
    wide = stream(dataset, titles=1000)
    for number in range(3):
        assert (wide.batch(number, 0, 1).codes // 2).tolist() == targets
