"""The losses of wide batches: what it compares, what learns from it, and what the cache keeps."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lsvcr.data.rank import RankData
from lsvcr.data.rank_wide import WideBatch, WideStream
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.data.text_bank import TextBank
from lsvcr.llm.wide import TextStates, WideLoss
from lsvcr.models.rank import RankModel
from lsvcr.models.sr import EmbeddingHead, SRModel
from lsvcr.schema import Split, Task

WIDTH = 12


@pytest.fixture(scope="module")
def dataset(tiny_data: Path) -> Dataset:
    return open_dataset(tiny_data)


def tables(dataset: Dataset) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    made = [torch.randn(n + 1, WIDTH, generator=draw) for n in (dataset.n_videos, dataset.n_comments)]
    for table in made:
        table[0] = 0
    return made[0], made[1]


def model() -> WideLoss:
    torch.manual_seed(0)
    sr = SRModel(text_width=8, hidden=8, inner=16, dropout=0.0, attention_dropout=0.0, max_position=6)
    return WideLoss(sr, EmbeddingHead(WIDTH, 8))


def batch_of(dataset: Dataset, task: Task = Task.REC) -> WideBatch:
    bank = TextBank(dataset.titles(), dataset.contents(), lambda texts: [list(map(ord, t)) for t in texts])
    data = RankData(dataset, task, Split.TRAIN, max_videos=6, max_entries=6)
    return WideStream(data, bank, groups=5, per_group=3, seed=0).batch(0, 0, 1)


def of_task(task: Task, tables: tuple[Tensor, Tensor]) -> Tensor:
    return tables[0] if task is Task.REC else tables[1]


def test_it_is_the_softmax_of_stage_two_among_the_titles_just_read(dataset: Dataset) -> None:
    """With fresh states equal to the cached ones, the rows' own RankModel gives the same figure."""
    wide, batch, (videos, comments) = model(), batch_of(dataset), tables(dataset)
    loss = wide(videos[batch.fresh], batch, TextStates(videos, comments, torch.device("cpu")))
    whole = RankModel(
        wide.sr, Task.REC, videos, comments, n_videos=dataset.n_videos, n_comments=dataset.n_comments, head=wide.head
    )  # fmt: skip
    data = RankData(dataset, Task.REC, Split.TRAIN, max_videos=6, max_entries=6)
    samples = data.training(batch.samples.rows.numpy(), (0, 0))
    scores = whole.user_vectors(samples) @ whole.item_vectors()[batch.fresh].T / wide.sr.temperature
    labels = batch.samples.candidates[:, 0] - 1
    torch.testing.assert_close(loss, F.cross_entropy(scores, labels))


def test_it_is_the_softmax_of_stage_two_among_the_comments_just_read(dataset: Dataset) -> None:
    wide, batch, (videos, comments) = model(), batch_of(dataset, Task.COMM_RANK), tables(dataset)
    loss = wide(comments[batch.fresh], batch, TextStates(videos, comments, torch.device("cpu")))
    whole = RankModel(
        wide.sr, Task.COMM_RANK, videos, comments, n_videos=dataset.n_videos, n_comments=dataset.n_comments,
        head=wide.head,
    )  # fmt: skip
    data = RankData(dataset, Task.COMM_RANK, Split.TRAIN, max_videos=6, max_entries=6)
    samples = data.training(batch.samples.rows.numpy(), (0, 0))
    candidates = batch.samples.candidates
    named = torch.cat([torch.zeros(1, dtype=torch.int64), batch.fresh])[candidates]
    users, items = whole.user_vectors(samples), whole.item_vectors()[named]
    scores = (users[:, None] * items).sum(-1) / wide.sr.temperature
    scores = scores.masked_fill(candidates == 0, -torch.inf)
    torch.testing.assert_close(loss, F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64)))


@pytest.mark.parametrize("task", Task)
def test_fresh_states_learn_and_cached_ones_do_not(dataset: Dataset, task: Task) -> None:
    batch, (videos, comments) = batch_of(dataset, task), tables(dataset)
    cache = TextStates(videos, comments, torch.device("cpu"))
    fresh = of_task(task, (videos, comments))[batch.fresh].clone().requires_grad_()
    model()(fresh, batch, cache).backward()
    assert fresh.grad is not None
    assert (fresh.grad != 0).any(dim=1).all()
    assert not cache.videos.requires_grad
    assert not cache.comments.requires_grad


@pytest.mark.parametrize("task", Task)
def test_histories_come_from_the_cache_alone(dataset: Dataset, task: Task) -> None:
    """A fresh text of another process is not at hand, so one's own must not be read in its place either."""
    batch, (videos, comments) = batch_of(dataset, task), tables(dataset)
    states = of_task(task, (videos, comments))[batch.fresh].clone().requires_grad_()
    wide = model().eval()
    users = wide._model(states, batch, TextStates(videos, comments, torch.device("cpu"))).user_vectors(
        batch.samples
    )
    (gradient,) = torch.autograd.grad(users.square().sum() + users.sum(), states, allow_unused=True)
    assert gradient is None or not gradient.any()


@pytest.mark.parametrize("task", Task)
def test_the_cache_keeps_what_was_read_and_can_be_taken_up(dataset: Dataset, task: Task) -> None:
    videos, comments = tables(dataset)
    cache, batch = TextStates(videos, comments, torch.device("cpu")), batch_of(dataset, task)
    cache.update(batch, torch.ones(len(batch.fresh), WIDTH))
    kept, before = of_task(task, (cache.videos, cache.comments)), of_task(task, (videos, comments))
    changed = (kept != before).any(dim=1).nonzero().flatten()
    assert torch.equal(changed, batch.fresh)
    assert (kept[batch.fresh] == 1).all()
    again = TextStates(videos, comments, torch.device("cpu"))
    state = {**cache.state(), "other": torch.zeros(1)}
    again.take(state)
    assert torch.equal(again.videos, cache.videos)
    assert torch.equal(again.comments, cache.comments)
    assert list(state) == ["other"]
