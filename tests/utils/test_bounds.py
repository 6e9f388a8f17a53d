"""Numbers that no command can work with are refused by the name of their flag."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lsvcr import settings as all_settings
from lsvcr.baselines import generative, generative_settings, gpsd_settings
from lsvcr.baselines.alpaca import write_alpaca
from lsvcr.baselines.generative_settings import AlpacaSettings, TuneSettings
from lsvcr.baselines.gpsd_settings import ClickSettings, check_clicks
from lsvcr.baselines.registry import entries
from lsvcr.data.store import Dataset
from lsvcr.settings import AlignSettings, HllmSettings, RankSettings
from lsvcr.settings.bounds import check_bounds
from lsvcr.training import align_build, baseline_setup, hllm_setup, rank_setup
from lsvcr.utils.errors import UserError

MODULES = (all_settings, generative_settings, gpsd_settings)
CLASSES = {value for module in MODULES for value in vars(module).values() if dataclasses.is_dataclass(value)}
TRAININGS = {
    "stage one": (align_build.check_settings, AlignSettings()),
    "stage two": (rank_setup.check_settings, RankSettings()),
    "hllm": (hllm_setup.check_settings, HllmSettings()),
    "sasrec": (baseline_setup.check_settings, entries()["sasrec"].settings()),
    "clicks": (check_clicks, ClickSettings()),
    "tune": (generative.check_settings, TuneSettings()),
}


def test_defaults_are_within_bounds():
    for cls in CLASSES | {entry.settings for entry in entries().values()}:
        check_bounds(cls())


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"seed": -1}, "--seed -1 must be 0 or more"),
        ({"weight_decay": -1.0}, "--weight_decay -1.0 must be 0 or more"),
        ({"learning_rate": 0.0}, "--learning_rate 0.0 must be above 0"),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps 0 must be above 0"),
        ({"warmup_ratio": 3.0}, "--warmup_ratio 3.0 must be between 0 and 1"),
    ],
)
@pytest.mark.parametrize("name", TRAININGS)
def test_every_training_refuses_the_same_numbers(name: str, changes: dict[str, Any], told: str):
    check, settings = TRAININGS[name]
    check(settings)
    with pytest.raises(UserError) as refused:
        check(dataclasses.replace(settings, **changes))
    assert str(refused.value) == told


@pytest.mark.parametrize(
    "name, changes",
    [
        ("stage one", {"learning_rate": -3e-3}),
        ("stage one", {"sr_learning_rate": -1.0}),
        ("stage one", {"temperature": 0.0}),
        ("stage one", {"temperature": -0.07}),
        ("stage one", {"layers": 0}),
        ("stage one", {"heads": 0}),
        ("stage one", {"text_width": 0}),
        ("stage one", {"rec_loss_weight": -1.0}),
        ("stage one", {"eval_steps": -1}),
        ("stage one", {"dataloader_num_workers": -1}),
        ("stage two", {"dropout": 1.5}),
        ("stage two", {"attention_dropout": -0.1}),
        ("stage two", {"text_width": -1}),
        ("stage two", {"inner": 0}),
        ("stage two", {"id_text_negatives": -1}),
        ("stage two", {"id_init_std": -1.0}),
        ("stage two", {"num_train_epochs": 0}),
        ("stage two", {"patience": 0}),
        ("stage two", {"dataloader_num_workers": -1}),
        ("hllm", {"lora_alpha": 0}),
        ("hllm", {"patience": 0}),
        ("hllm", {"save_steps": 0}),
        ("hllm", {"head_learning_rate": -1.0}),
        ("sasrec", {"inner": 0}),
        ("sasrec", {"num_train_epochs": 0}),
        ("sasrec", {"patience": 0}),
        ("sasrec", {"neg_video_num": -1}),
        ("clicks", {"inner": -1}),
        ("clicks", {"patience": -1}),
        ("clicks", {"sample_seed": -1}),
        ("tune", {"num_train_epochs": -1}),
        ("tune", {"patience": 0}),
        ("tune", {"lora_dropout": 1.0}),
    ],
)
def test_a_number_out_of_bounds_is_named(name: str, changes: dict[str, Any]):
    check, settings = TRAININGS[name]
    ((flag, value),) = changes.items()
    with pytest.raises(UserError, match=f"^--{flag} {value} must be "):
        check(dataclasses.replace(settings, **changes))


def test_zero_is_fine_where_it_is_the_default_and_means_something():
    check_clicks(ClickSettings(inner=0))
    align_build.check_settings(AlignSettings(eval_steps=0))
    hllm_setup.check_settings(HllmSettings(lora_r=0))
    generative.check_settings(TuneSettings(num_train_epochs=0))


def test_records_are_not_drawn_with_a_seed_below_zero(tiny_dataset: Dataset, tmp_path: Path):
    with pytest.raises(UserError, match="--seed -1 must be 0 or more"):
        write_alpaca(tiny_dataset, AlpacaSettings(seed=-1, out=str(tmp_path / "records.jsonl")))
