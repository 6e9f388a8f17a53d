"""Every loss and sampler of Rec: what may be combined, and that each learns the planted preference."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lsvcr.losses.ranking import gbce_beta
from lsvcr.schema import Split
from lsvcr.settings import RankSettings
from lsvcr.training.rank import run
from lsvcr.training.rank_evaluate import evaluate_checkpoint
from lsvcr.training.rank_setup import set_up
from lsvcr.utils.arguments import parse_settings
from lsvcr.utils.errors import UserError
from tests.training.rank_runs import VIDEOS, settings, write_planted

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

OPTIONS = {
    "uniform": {"neg_video_num": 10},
    "log_uniform": {"negative_sampler": "log_uniform", "neg_video_num": 10},
    "in_batch": {"negative_sampler": "in_batch"},
    "bce": {"rec_loss": "bce", "neg_video_num": 10},
    "gbce": {"rec_loss": "gbce", "neg_video_num": 10},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("planted"))


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_learns_the_planted_preference(data: Path, tmp_path: Path, option: str) -> None:
    """A user's topic has 6 of 24 videos; by chance 10 of 24 have the target."""
    chosen = OPTIONS[option]
    common = {"num_train_epochs": 15, "patience": 15, "metric_for_best_model": "recall@10"}
    report = run(settings(data, tmp_path, **common, **chosen))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["train/ranking"] < lines[0]["train/ranking"]
    assert report["protocols"]["full"]["metrics"]["recall@10"]["value"] > 0.85
    assert evaluate_checkpoint(str(tmp_path), str(data)) == report


@pytest.mark.parametrize("option", ["log_uniform", "in_batch", "gbce"])
def test_a_run_is_a_function_of_its_seed(data: Path, tmp_path: Path, option: str) -> None:
    for name, workers in (("a", 0), ("b", 2)):
        common = {"num_train_epochs": 1, "dataloader_num_workers": workers}
        run(settings(data, tmp_path / name, **common, **OPTIONS[option]))
    a, b = (load_file(tmp_path / name / "last" / "sr.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_last_batch_of_one_row_trains(data: Path, tmp_path: Path) -> None:
    """79 of 80 rows in one batch leave a row that has no other."""
    run(settings(data, tmp_path, num_train_epochs=1, per_device_train_batch_size=79, **OPTIONS["in_batch"]))
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(line["train/loss"])


def test_settings_become_the_loss_they_name(data: Path, tmp_path: Path) -> None:
    made = {name: set_up(settings(data, tmp_path, **chosen)) for name, chosen in OPTIONS.items()}
    losses = {name: setup.model.sampled_loss for name, setup in made.items()}
    assert [losses[name].beta for name in ("uniform", "log_uniform", "in_batch")] == [None] * 3
    assert losses["uniform"].log_probability is None
    assert losses["bce"].beta == 1
    assert losses["gbce"].beta == gbce_beta(10, VIDEOS, 0.75)
    assert losses["in_batch"].in_batch and not losses["log_uniform"].in_batch
    for name in ("log_uniform", "in_batch"):
        assert losses[name].log_probability is not None
        assert len(losses[name].log_probability) == VIDEOS + 1
    batch = made["in_batch"].data(Split.TRAIN).training(np.arange(4), (1, 0))
    assert torch.equal(batch.negatives, batch.candidates[:, 0])
    stronger = set_up(settings(data, tmp_path, gbce_t=1.0, **OPTIONS["gbce"])).model.sampled_loss
    assert stronger.beta == pytest.approx(10 / (VIDEOS - 1))
    assert not any("sampled_loss" in name for name in made["in_batch"].model.state_dict())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"neg_video_num": -1}, "--neg_video_num -1"),
        ({"rec_loss": "bce"}, "--rec_loss bce learns from sampled negatives; give --neg_video_num"),
        ({"rec_loss": "gbce", "neg_video_num": VIDEOS}, f"a target has {VIDEOS - 1} negatives"),
        (
            {"rec_loss": "gbce", "neg_video_num": 5, "negative_sampler": "log_uniform"},
            "drop --negative_sampler log_uniform",
        ),
        ({"rec_loss": "bce", "negative_sampler": "in_batch"}, "drop --negative_sampler in_batch"),
        ({"negative_sampler": "log_uniform"}, "log_uniform needs --neg_video_num"),
        ({"negative_sampler": "in_batch", "neg_video_num": 5}, "drop --neg_video_num 5"),
        (
            {"negative_sampler": "in_batch", "per_device_train_batch_size": 1},
            "--per_device_train_batch_size 2 or more",
        ),
        ({"rec_loss": "gbce", "neg_video_num": 5, "gbce_t": 1.5}, r"--gbce_t 1\.5"),
    ],
)
def test_what_does_not_go_together_is_refused(
    data: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        set_up(settings(data, tmp_path, **changes))


def test_comm_rank_does_not_mind_the_flags_of_rec(data: Path, tmp_path: Path) -> None:
    """One settings file serves both tasks."""
    for option in OPTIONS.values():
        set_up(settings(data, tmp_path, finetune_task="CommRank", **option))


def test_the_flags_exist() -> None:
    words = "--rec_loss gbce --neg_video_num 256 --gbce_t 0.9".split()
    made = parse_settings(RankSettings, words, "finetune.py")
    assert (made.rec_loss, made.neg_video_num, made.gbce_t) == ("gbce", 256, 0.9)
    assert (RankSettings().rec_loss, RankSettings().negative_sampler) == ("softmax", "uniform")
    with pytest.raises(UserError, match="in_batch"):
        parse_settings(RankSettings, ["--negative_sampler", "inbatch"], "finetune.py")
