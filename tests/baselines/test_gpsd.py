"""GPSD's pretraining: its losses by hand, what it reads, what it refuses, and that it learns what can be learned."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lsvcr.baselines.gpsd import GPSD, GpsdSettings, build
from lsvcr.data.rank_sequences import SequenceBatch, SequenceData
from lsvcr.data.store import Dataset
from lsvcr.training.baseline import run
from lsvcr.utils.errors import UserError

SMALL = {"max_his": 6, "hidden": 16, "dropout": 0.0, "attention_dropout": 0.0, "neg_video_num": 12}


def made(dataset: Dataset, **changes: object) -> tuple[GPSD, SequenceBatch]:
    """A model with weights of size 1 and a batch of six sequences."""
    settings = GpsdSettings(**{**SMALL, **changes})
    torch.manual_seed(0)
    model = build(settings, dataset)
    with torch.no_grad():
        for table in model.tables.tables.values():
            table.weight[1:].normal_()
    rows = SequenceData(dataset, settings.max_his, share="sequence")
    return model, rows.training(np.arange(6), (1, 0), settings.neg_video_num)


def spread(model: GPSD, ids: Tensor) -> Tensor:
    """(B, L, d)."""
    states, packing = model.states(ids)
    return packing.spread(states)


def plain_parts(model: GPSD, batch: SequenceBatch) -> dict[str, Tensor]:
    """Target by target, as the method has it."""
    states = spread(model, batch.video_ids)
    terms: dict[str, list[Tensor]] = {name: [] for name in model.tables.tables}
    for row, step in (batch.targets > 0).nonzero().tolist():
        state, target = states[row, step], int(batch.targets[row, step])
        scores = model.tables.weight("id") @ state
        others = scores[1:]
        if batch.negatives.numel():
            others = scores[[target, *(int(j) for j in batch.negatives[row] if int(j) != target)]]
        terms["id"].append(others.logsumexp(0) - scores[target])
        for name in model.tables.names:
            value = int(model.tables.codes(name, torch.tensor(target)))
            scores_of = model.tables.weight(name) @ state
            told = scores_of[1:].logsumexp(0) - scores_of[value]
            terms[name].append(told if value else torch.zeros(()))
    return {name: torch.stack(values).mean() for name, values in terms.items()}


@pytest.mark.parametrize("negatives", [12, 0])
@pytest.mark.parametrize("features", ["auto", "category", "none"])
def test_losses_are_those_of_the_method(tiny_dataset: Dataset, features: str, negatives: int) -> None:
    """12 draws of 32 videos: some are targets, and then no negatives of themselves."""
    model, batch = made(tiny_dataset, features=features, neg_video_num=negatives, feature_loss_weight=0.5)
    assert model.tables.names == {"auto": ("category", "author"), "category": ("category",)}.get(features, ())
    parts, found = plain_parts(model, batch), model.training_loss(batch)
    wanted = parts["id"] + 0.5 * sum(parts[name] for name in model.tables.names)
    torch.testing.assert_close(found["loss"], wanted)
    for name in model.tables.names:
        torch.testing.assert_close(found[name], parts[name])


def test_a_value_that_is_not_told_costs_nothing(tiny_dataset: Dataset) -> None:
    model, batch = made(tiny_dataset)
    model.tables.category_codes[batch.targets[0, 0]] = 0
    parts, found = plain_parts(model, batch), model.training_loss(batch)
    torch.testing.assert_close(found["category"], parts["category"])


def test_a_sequences_targets_share_their_negatives(tiny_dataset: Dataset) -> None:
    _, batch = made(tiny_dataset)
    assert batch.negatives.shape == (6, 12)


def test_a_video_is_the_sum_of_its_features(tiny_dataset: Dataset) -> None:
    model, _ = made(tiny_dataset)
    tables = model.tables
    wanted = (
        tables.weight("id")[7]
        + tables.weight("category")[tables.category_codes[7]]
        + tables.weight("author")[tables.author_codes[7]]
    )
    torch.testing.assert_close(tables(torch.tensor([7]))[0], wanted)
    assert not tables(torch.tensor([0])).any()


def test_codes_are_the_datasets_and_no_weights(tiny_dataset: Dataset) -> None:
    model, _ = made(tiny_dataset)
    assert not [name for name in model.state_dict() if "codes" in name]


def test_no_position_sees_a_later_one(tiny_dataset: Dataset) -> None:
    model, batch = made(tiny_dataset)
    ids = batch.video_ids.clone()
    before = spread(model, ids)
    ids[:, 2:] = ids[:, 2:].flip(0) % 32 + 1
    torch.testing.assert_close(spread(model, ids)[:, :2], before[:, :2])
    assert not torch.allclose(spread(model, ids)[:, 2:], before[:, 2:])


def test_the_order_of_the_videos_matters(tiny_dataset: Dataset) -> None:
    model, _ = made(tiny_dataset)
    one, two = spread(model, torch.tensor([[3, 9, 4], [9, 3, 4]]))[:, -1]
    assert not torch.allclose(one, two)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 16}, "--hidden 16 must be a multiple of twice --heads 16"),
        ({"layers": 0}, "--layers 0 must be above 0"),
        ({"inner": -1}, "--inner -1"),
        ({"dropout": 1.0}, "--dropout 1.0"),
        ({"feature_loss_weight": -1.0}, "--feature_loss_weight -1.0"),
        ({"features": "color"}, "'color' is none of"),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_dataset: Dataset, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(GpsdSettings(**{**SMALL, **changes}), tiny_dataset)


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("options", [{"neg_video_num": 0}, {"neg_video_num": 20}], ids=str)
def test_it_learns_whose_topic_is_whose(tiny_data: Path, tmp_path: Path, options: dict) -> None:
    """People go through the 8 videos of their topic in steps of 3: the next one is certain."""
    named = {**SMALL, "learning_rate": 0.01, "num_train_epochs": 40, "per_device_train_batch_size": 8}
    settings = GpsdSettings(
        data_path=str(tiny_data), output_dir=str(tmp_path), report_to="none", **{**named, **options}
    )
    report = run("gpsd", settings)
    assert report["protocols"]["full"]["metrics"]["recall@5"]["value"] > 0.9
