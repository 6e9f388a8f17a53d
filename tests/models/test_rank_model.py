"""The stage-two model: every text projected once, padding without effect, empty histories finite."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lsvcr.data.rank import RankBatch, RankData
from lsvcr.data.store import Dataset
from lsvcr.models.base import Recommender
from lsvcr.models.rank import RankModel
from lsvcr.models.sr import EmbeddingHead, Histories, SRModel
from lsvcr.nn.similarity import unit
from lsvcr.schema import Split, Task
from tests.rank_world import World

WIDTH, VIDEO_OF = 6, [1, 1, 1, 2, 2, 4]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Every kind of emptiness: no videos, no comments, neither (through a cut at zero), a video without comments."""
    return World(
        n_videos=5,
        videos=[[1, 2, 3, 4], [5, 1], [], [2]],
        comments=[[(1, 0), (2, 0), (4, 1)], [], [(6, 0)], [(5, 0)]],
        video_of=VIDEO_OF,
        rec={Split.TRAIN: [(1, 3, 3, 4), (2, 1, 0, 1), (3, 0, 1, 2), (4, 0, 0, 2)]},
        comm_rank={Split.TRAIN: [(1, 4, 2, 2), (2, 2, 0, 1), (3, 0, 0, 4), (4, 1, 0, 2)]},
        positives={Split.TRAIN: [[4], [1, 3], [6], [5]]},
    ).write(tmp_path_factory.mktemp("model"))


def model(
    task: Task, *, head: bool = False, ids: bool = True, text: bool = True, comments: bool = True
) -> RankModel:
    torch.manual_seed(0)
    wide = 8 if head else WIDTH
    sr = SRModel(
        text_width=WIDTH,
        hidden=8,
        layers=1,
        inner=16,
        dropout=0.0,
        attention_dropout=0.0,
        max_position=6,
        n_videos=5 if ids else 0,
        n_comments=0 if text else len(VIDEO_OF),
        use_text=text,
        use_comments=comments,
    )
    tables = [torch.randn(n + 1, wide) for n in (5, len(VIDEO_OF))]
    for table in tables:
        table[0] = 0
    return RankModel(
        sr,
        task,
        tables[0] if text else None,
        tables[1] if text else None,
        n_videos=5,
        n_comments=len(VIDEO_OF),
        head=EmbeddingHead(8, WIDTH) if head else None,
    )


def batch_of(dataset: Dataset, task: Task) -> RankBatch:
    return RankData(dataset, task, Split.TRAIN).training(np.arange(4), (1, 0), 0 if task is Task.REC else 3)


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize(
    "kind", [{}, {"head": True}, {"ids": False}, {"text": False}, {"comments": False}], ids=str
)
def test_loss_gradients_and_vectors_are_finite(dataset: Dataset, task: Task, kind: dict[str, bool]) -> None:
    made = model(task, **kind)
    assert isinstance(made, Recommender)
    losses = made(batch_of(dataset, task))
    assert torch.isfinite(torch.stack(list(losses.values()))).all()
    assert ("id_text" in losses) == (kind not in ({"ids": False}, {"text": False}))
    losses["loss"].backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    made.eval()
    with torch.no_grad():
        users, items = made.user_vectors(batch_of(dataset, task)), made.item_vectors()
    assert users.shape == (4, 8)
    assert items.shape == ((5 if task is Task.REC else len(VIDEO_OF)) + 1, 8)
    assert users.dtype == items.dtype == torch.float32
    torch.testing.assert_close(users.norm(dim=1), torch.ones(4))


def test_users_are_the_sr_model_on_gathered_texts(dataset: Dataset) -> None:
    """Against histories put together entry by entry, each text projected where it stands."""
    for task in Task:
        made = model(task, head=True).eval()
        batch = batch_of(dataset, task)
        with torch.no_grad():
            histories = plain_histories(made, batch)
            if task is Task.REC:
                expected = made.sr.rec_vectors(histories)
            else:
                watched = made.sr.video_vectors(title(made, batch.videos), batch.videos)
                expected = made.sr.comm_rank_vectors(histories, watched)
            torch.testing.assert_close(made.user_vectors(batch), unit(expected))
            torch.testing.assert_close(made.train().user_vectors(batch), unit(expected))


def title(made: RankModel, ids: torch.Tensor) -> torch.Tensor:
    assert made.video_text is not None
    assert made.head is not None
    return made.sr.project(made.head(made.video_text[ids]))


def plain_histories(made: RankModel, batch: RankBatch) -> Histories:
    assert made.comment_text is not None
    assert made.head is not None
    rows, steps = batch.entry_videos.shape
    means = torch.zeros(rows, steps, 8)
    for row in range(rows):
        for step in range(steps):
            own = batch.comments[batch.comment_entries == row * steps + step]
            if len(own):
                means[row, step] = made.sr.project(made.head(made.comment_text[own])).mean(0)
    return Histories(
        video_title=title(made, batch.video_ids),
        video_comment=made.sr.project(made.head(made.comment_text[batch.video_comments])),
        video_ids=batch.video_ids,
        video_mask=batch.video_ids > 0,
        comment_title=title(made, batch.entry_videos),
        comment_comment=means,
        comment_video_ids=batch.entry_videos,
        comment_mask=batch.entry_videos > 0,
    )


def test_wider_padding_changes_nothing(dataset: Dataset) -> None:
    made = model(Task.REC).eval()
    batch = batch_of(dataset, Task.REC)
    steps, wider = batch.entry_videos.shape[1], batch.entry_videos.shape[1] + 2
    entries = batch.comment_entries // steps * wider + batch.comment_entries % steps
    padded = {
        name: torch.nn.functional.pad(getattr(batch, name), (0, 2))
        for name in ("video_ids", "video_comments", "entry_videos")
    }
    with torch.no_grad():
        torch.testing.assert_close(
            made.user_vectors(replace(batch, **padded, comment_entries=entries)), made.user_vectors(batch)
        )


def test_text_tables_are_neither_saved_nor_trained(dataset: Dataset) -> None:
    made = model(Task.REC)
    assert all(name.startswith("sr.") for name in made.state_dict())
    assert not any("text" in name for name, _ in made.named_parameters())


def test_evaluation_forgets_what_it_kept_when_the_mode_changes(dataset: Dataset) -> None:
    made, batch = model(Task.REC).eval(), batch_of(dataset, Task.REC)
    with torch.no_grad():
        before = made.user_vectors(batch)
        assert made.sr.adapter is not None
        made.sr.adapter.weight.mul_(-1)
        made.eval()
        after = made.user_vectors(batch)
    assert not torch.allclose(before, after)


def test_sampled_negatives_never_count_the_target_twice(dataset: Dataset) -> None:
    """Negatives that are all the target leave nothing to lose."""
    made, batch = model(Task.REC, ids=False), batch_of(dataset, Task.REC)
    one = replace(
        batch, **{f.name: getattr(batch, f.name)[:1] for f in fields(batch) if f.name in ("rows", "videos")}
    )
    one = replace(one, **{n: getattr(batch, n)[:1] for n in ("video_ids", "video_comments", "entry_videos")})
    kept = batch.comment_entries < batch.entry_videos.shape[1]
    one = replace(
        one,
        comments=batch.comments[kept],
        comment_entries=batch.comment_entries[kept],
        candidates=batch.candidates[:1],
        negatives=batch.candidates[0].repeat(5),
    )
    assert made(one)["ranking"].item() == pytest.approx(0, abs=1e-6)


def test_many_history_entries_are_sampled_for_the_contrast(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lsvcr.models.rank.CONTRASTED", 3)
    loss = model(Task.REC)(batch_of(dataset, Task.REC))["id_text"]
    assert torch.isfinite(loss)
    assert loss > 0


def test_a_large_table_through_a_head_is_computed_anew_in_backward(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of two rows, the head's inner states not kept: the same loss and gradients."""
    results = []
    for rows in (1 << 16, 2):
        monkeypatch.setattr("lsvcr.models.rank.TABLE_ROWS", rows)
        made = model(Task.REC, head=True)
        assert made.head is not None
        passes = []
        made.head.register_forward_hook(lambda *_, seen=passes: seen.append(1))
        loss = made(batch_of(dataset, Task.REC))["ranking"]
        before = len(passes)
        loss.backward()
        results.append((loss.detach(), made.head.inner.weight.grad, len(passes) - before))
    (whole, gradient, _), (parts, in_parts, again) = results
    torch.testing.assert_close(whole, parts)
    torch.testing.assert_close(gradient, in_parts)
    assert [again, results[0][2]] == [3, 0]


@pytest.mark.parametrize("kind", [{}, {"ids": False}, {"text": False}], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_the_whole_catalogue_is_every_video_looked_up(kind: dict[str, bool], masked: bool) -> None:
    made = model(Task.REC, **kind).eval()
    if masked:
        made.with_id = torch.tensor([True, True, False, True, False, True])
    with torch.no_grad():
        titles, every = made.titles(), torch.arange(6)
        expected = unit(made.sr.video_vectors(titles, made._ids(every)))
        torch.testing.assert_close(made.item_vectors(), expected)


def test_tables_may_be_mapped_from_disk(dataset: Dataset, tmp_path: Path) -> None:
    made = model(Task.REC)
    assert made.video_text is not None
    np.save(tmp_path / "t.npy", made.video_text.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "t.npy", mmap_mode="c"))
    with torch.no_grad():
        before = made.eval().item_vectors()
        made.video_text = mapped
        torch.testing.assert_close(made.eval().item_vectors(), before)
