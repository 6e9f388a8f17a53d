"""The losses of wide batches: what they compare, what learns from them, and what the cache keeps."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lsvcr.data.align_taste import TasteBatch, TasteStream
from lsvcr.data.rank import RankData
from lsvcr.data.rank_wide import WideBatch, WideStream
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.data.text_bank import TextBank
from lsvcr.llm.wide import TasteLoss, TextStates, WideLoss
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


def taste() -> TasteLoss:
    wide = model()
    return TasteLoss(wide.sr, wide.head)


def bank_of(dataset: Dataset) -> TextBank:
    return TextBank(dataset.titles(), dataset.contents(), lambda texts: [list(map(ord, t)) for t in texts])


def batch_of(dataset: Dataset) -> WideBatch:
    data = RankData(dataset, Task.REC, Split.TRAIN, max_videos=6, max_entries=6)
    return WideStream(data, bank_of(dataset), titles=5, per_title=3, seed=0).batch(0, 0, 1)


def taste_of(dataset: Dataset) -> TasteBatch:
    return TasteStream(dataset, bank_of(dataset), texts=30, per_text=3, seed=0).batch(0, 0, 1)


def cache_of(dataset: Dataset) -> TextStates:
    return TextStates(*tables(dataset), torch.device("cpu"))


def test_it_is_the_softmax_of_stage_two_among_the_titles_just_read(dataset: Dataset) -> None:
    """With fresh states equal to the cached ones, the rows' own RankModel gives the same figure."""
    wide, batch, (videos, comments) = model(), batch_of(dataset), tables(dataset)
    loss = wide(videos[batch.codes // 2], batch, cache_of(dataset))
    whole = RankModel(
        wide.sr, Task.REC, videos, comments, n_videos=dataset.n_videos, n_comments=dataset.n_comments, head=wide.head
    )  # fmt: skip
    data = RankData(dataset, Task.REC, Split.TRAIN, max_videos=6, max_entries=6)
    samples = data.training(batch.samples.rows.numpy(), (0, 0))
    scores = whole.user_vectors(samples) @ whole.item_vectors()[batch.codes // 2].T / wide.sr.temperature
    labels = batch.samples.candidates[:, 0] - 1
    torch.testing.assert_close(loss, F.cross_entropy(scores, labels))


def test_histories_come_from_the_cache_alone(dataset: Dataset) -> None:
    """A fresh text of another process is not at hand, so one's own must not be read in its place either."""
    batch, cache = batch_of(dataset), cache_of(dataset)
    states = cache.rows(batch.codes).requires_grad_()
    users = model().eval()._model(states, batch, cache).user_vectors(batch.samples)
    (gradient,) = torch.autograd.grad(users.square().sum() + users.sum(), states, allow_unused=True)
    assert gradient is None or not gradient.any()


def test_the_taste_contrast_person_by_person(dataset: Dataset) -> None:
    contrast, batch, cache = taste(), taste_of(dataset), cache_of(dataset)
    found = contrast(cache.rows(batch.codes), batch, cache)

    def vector(code: int) -> Tensor:
        state = (cache.comments if code % 2 else cache.videos)[code // 2]
        return F.normalize(contrast.sr.project(contrast.head(state)), dim=-1)

    losses = []
    for person, label in enumerate(batch.labels.tolist()):
        shown = batch.shown[batch.owners == person].tolist()
        user = F.normalize(torch.stack([vector(code) for code in shown]).mean(0), dim=-1)
        kept = [
            place
            for place in range(len(batch.codes))
            if place == label or not bool(batch.liked[person, place])
        ]
        scores = (
            torch.stack([user @ vector(int(batch.codes[place])) for place in kept]) / contrast.sr.temperature
        )
        losses.append(F.cross_entropy(scores, torch.tensor(kept.index(label))))
    assert int(batch.liked.sum()) > len(batch.labels)  # some are left out
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_fresh_states_learn_and_cached_ones_do_not(dataset: Dataset) -> None:
    cache = cache_of(dataset)
    for loss, batch in ((model(), batch_of(dataset)), (taste(), taste_of(dataset))):
        fresh = cache.rows(batch.codes).requires_grad_()
        loss(fresh, batch, cache).backward()
        assert fresh.grad is not None
        assert (fresh.grad != 0).any(dim=1).all()
        assert not cache.videos.requires_grad
        assert not cache.comments.requires_grad


def test_the_cache_keeps_what_was_read_and_can_be_taken_up(dataset: Dataset) -> None:
    cache, batch = cache_of(dataset), taste_of(dataset)
    cache.update(batch.codes, torch.ones(len(batch.codes), WIDTH))
    read = []
    for now, then, odd in zip((cache.videos, cache.comments), tables(dataset), (0, 1), strict=True):
        changed = (now != then).any(dim=1).nonzero().flatten()
        assert (now[changed] == 1).all()
        read += (2 * changed + odd).tolist()
    assert sorted(read) == sorted(batch.codes.tolist())
    assert (cache.rows(batch.codes) == 1).all()
    again, state = cache_of(dataset), {**cache.state(), "other": torch.zeros(1)}
    again.take(state)
    assert torch.equal(again.videos, cache.videos)
    assert torch.equal(again.comments, cache.comments)
    assert list(state) == ["other"]
