"""What every recommender of the registry must do; a new one is in it at once."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lsvcr.baselines.registry import NEEDS, Entry, entries
from lsvcr.data.rank import RankBatch
from lsvcr.data.store import open_dataset
from lsvcr.evaluation import evaluator
from lsvcr.evaluation.protocol import FULL, Protocol
from lsvcr.schema import Split
from lsvcr.settings import BaselineSettings
from lsvcr.training.baseline import run
from lsvcr.training.baseline_setup import FittedSetup, TrainedSetup, set_up
from lsvcr.training.rank_batches import EpochBatches
from lsvcr.training.rank_evaluate import evaluate_checkpoint
from lsvcr.training.rank_restore import restore
from tests.contract.small import IN_BATCH, embed_items, shorten, small
from tests.tiny_world import write_raw

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

ALL = list(entries().values())
TRAINED = [entry for entry in ALL if issubclass(entry.settings, BaselineSettings)]
each = pytest.mark.parametrize("entry", ALL, ids=lambda entry: entry.name)
each_trained = pytest.mark.parametrize("entry", TRAINED, ids=lambda entry: entry.name)
Ready = Callable[..., FittedSetup]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world with histories of 4 to 7 likes, and its item vectors."""
    from lsvcr.data.prepare import prepare
    from lsvcr.settings import PrepareSettings

    folder = tmp_path_factory.mktemp("contract")
    shorten(write_raw(folder / "raw"))
    made = prepare(PrepareSettings(raw=str(folder / "raw"), out=str(folder / "data"), user_core=3))
    embed_items(made)
    return made


@pytest.fixture
def ready(data: Path, tmp_path: Path) -> Ready:
    """Sets a recommender up, or skips the test where the world cannot serve it."""

    def make(entry: Entry, **changes: object) -> FittedSetup:
        lacking = [need for need in entry.needs if not NEEDS[need][1](open_dataset(data))]
        if lacking:
            pytest.skip(f"the tiny world has no {', '.join(lacking)}")
        made = set_up(entry.name, small(entry, data, tmp_path / "run", **changes))
        made.model.eval()
        return made

    return make


def trained(setup: FittedSetup) -> TrainedSetup:
    assert isinstance(setup, TrainedSetup)
    return setup


def scores(model: torch.nn.Module, batch: RankBatch) -> Tensor:
    """(B, N + 1): of all videos, however the model gives them."""
    with torch.no_grad():
        if isinstance(model, evaluator.CatalogueScorer):
            return model.catalogue_scores(batch)
        return model.user_vectors(batch) @ model.item_vectors().T


def test_the_registry_has_the_recommenders_that_everything_is_measured_against() -> None:
    assert {"popularity", "recent_popularity", "item_knn", "sasrec"} <= {entry.name for entry in ALL}
    assert all(entry.instead in entries() and entry.instead != entry.name or not entry.needs for entry in ALL)


@each
def test_shapes_and_finite_figures(entry: Entry, ready: Ready) -> None:
    setup = ready(entry)
    batch = setup.data(Split.TEST).evaluation(np.arange(7))
    videos = setup.dataset.n_videos
    if isinstance(setup.model, evaluator.CatalogueScorer):
        assert setup.model.catalogue_scores(batch).dtype == torch.float32
    else:
        users, items = setup.model.user_vectors(batch), setup.model.item_vectors()
        assert users.shape == (7, items.shape[1]) and len(items) == videos + 1
        assert users.dtype == items.dtype == torch.float32
    found = scores(setup.model, batch)
    assert found.shape == (7, videos + 1) and bool(found.isfinite().all())


@each
def test_a_row_alone_and_padding_change_nothing(entry: Entry, ready: Ready) -> None:
    """Rows of different lengths; three more columns of padding."""
    setup = ready(entry)
    test = setup.data(Split.TEST)
    batch = test.evaluation(np.arange(24))
    assert len(set((batch.video_ids > 0).sum(1).tolist())) > 1
    together = scores(setup.model, batch)
    for row in range(24):
        alone = scores(setup.model, test.evaluation(np.array([row])))
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)
    none = batch.video_ids.new_zeros(24, 3)
    wide = replace(
        batch,
        video_ids=torch.cat([batch.video_ids, none], dim=1),
        video_comments=torch.cat([batch.video_comments, none], dim=1),
        video_times=torch.cat([batch.video_times, none], dim=1),
    )
    torch.testing.assert_close(scores(setup.model, wide), together, rtol=1e-5, atol=1e-5)


@each
def test_an_empty_history_has_scores(entry: Entry, ready: Ready) -> None:
    setup = ready(entry)
    batch = setup.data(Split.TEST).evaluation(np.arange(2))
    empty = replace(
        batch,
        video_ids=torch.zeros(2, 1, dtype=torch.int64),
        video_comments=torch.zeros(2, 1, dtype=torch.int64),
        video_times=torch.zeros(2, 1, dtype=torch.int64),
    )
    assert bool(scores(setup.model, empty).isfinite().all())


class WithLoudPadding(torch.nn.Module):
    """The model, but padding would be first everywhere if it ranked."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        if isinstance(model, evaluator.CatalogueScorer):
            self.catalogue_scores = self._scores

    def user_vectors(self, batch: RankBatch) -> Tensor:
        users = self.model.user_vectors(batch)
        return torch.cat([users, torch.ones(len(users), 1)], dim=1)

    def item_vectors(self) -> Tensor:
        items = self.model.item_vectors()
        loud = torch.zeros(len(items), 1)
        loud[0] = 1e6
        return torch.cat([items, loud], dim=1)

    def _scores(self, batch: RankBatch) -> Tensor:
        found = self.model.catalogue_scores(batch).clone()
        found[:, 0] = 1e6
        return found


@each
def test_padding_never_ranks_and_blocks_change_no_digit(
    entry: Entry, ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "BLOCK", 8)
    setup = ready(entry)
    rows = setup.data(Split.TEST)
    protocols = {
        "full": FULL,
        "unseen": Protocol("full", filter_seen=True),
        "sampled": Protocol("sampled", 20),
    }
    metrics = ("ndcg@10", "recall@5", "coverage@5", "gini@5", "novelty@5")
    found = []
    for model, batch, chunk in (
        (setup.model, 8, 5),
        (setup.model, 24, 4096),
        (WithLoudPadding(setup.model), 16, 7),
    ):
        made = evaluator.evaluate(model, rows, protocols, metrics=metrics, batch_size=batch, chunk=chunk)
        found.append(
            {
                name: ({m: v.tolist() for m, v in one.values.items()}, one.overall)
                for name, one in made.items()
            }
        )
    assert found[0] == found[1]
    assert found[0] == found[2]


@each
def test_a_run_is_its_checkpoint_and_its_seed(entry: Entry, ready: Ready, data: Path, tmp_path: Path) -> None:
    """Trained twice with one seed and once with another; `lsvcr evaluate` gives what the run found."""
    ready(entry)
    weights, reports = {}, {}
    for name, changes in {"a": {}, "b": {}, "other": {"seed": 7}}.items():
        reports[name] = run(entry.name, small(entry, data, tmp_path / name, **changes))
        weights[name] = load_file(tmp_path / name / "best" / "sr.safetensors")
    assert reports["a"] == reports["b"] == json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert all(torch.equal(value, weights["b"][name]) for name, value in weights["a"].items())
    if entry in TRAINED:
        assert any(not torch.equal(value, weights["other"][name]) for name, value in weights["a"].items())
    assert evaluate_checkpoint(str(tmp_path / "a"), str(data)) == reports["a"]
    restored, manifest = restore(tmp_path / "a" / "best", open_dataset(data))
    assert manifest["model"] == entry.name
    assert all(torch.equal(value, weights["a"][name]) for name, value in restored.model.state_dict().items())


@each_trained
def test_loss_is_finite_and_falls_in_twenty_steps(entry: Entry, ready: Ready) -> None:
    setup = trained(ready(entry))
    rows, model = setup.training(), setup.model.train()
    batch = rows.training(np.arange(len(rows)), (1, 0), setup.negatives)
    assert len(batch) == len(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setup.settings.learning_rate)
    losses = []
    for _ in range(21):
        parts = model(batch)
        assert all(value.ndim == 0 and bool(value.isfinite()) for value in parts.values())
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        losses.append(float(parts["loss"].detach()))
    assert losses[-1] < 0.9 * losses[0]


def gradients(setup: TrainedSetup, batch: int, accumulation: int) -> dict[str, Tensor]:
    """Of the first optimiser step, cut into micro-batches of `batch`."""
    model = setup.model.train()
    model.zero_grad()
    micro_steps = EpochBatches(
        setup.training(),
        batch=batch,
        accumulation=accumulation,
        seed=5,
        epoch=0,
        negatives=setup.negatives,
    )
    for number in range(accumulation):
        micro = micro_steps[number]
        assert micro.last == (number == accumulation - 1)
        (model(micro.batch)["loss"] * micro.weight).backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@each_trained
def test_a_step_does_not_depend_on_how_it_is_cut(entry: Entry, ready: Ready) -> None:
    """24 rows of unequal length at once, or in three micro-batches or processes of 8, weighted by their terms."""
    if entry.name in IN_BATCH:
        pytest.skip("its rows are one another's negatives")
    setup = trained(ready(entry))
    rows = setup.training()
    assert len(rows) >= 24
    whole, cut = gradients(setup, 24, 1), gradients(setup, 8, 3)
    assert whole.keys() == cut.keys() and any(bool(value.any()) for value in whole.values())
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@each_trained
def test_rows_are_a_function_of_seed_epoch_and_number(entry: Entry, ready: Ready) -> None:
    setup = trained(ready(entry))
    rows = setup.training()
    some = np.array([3, 0, 2])
    for keys in ((1, 0), (1, 1)):
        first, again = (rows.training(some, keys, setup.negatives) for _ in range(2))
        for part in fields(first):
            one, two = getattr(first, part.name), getattr(again, part.name)
            assert torch.equal(one, two) if isinstance(one, Tensor) else one == two
        assert rows.terms(some, keys) == sum(rows.terms(some[i : i + 1], keys) for i in range(3))
