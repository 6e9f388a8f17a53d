"""HLLM with both LLMs in training, as a whole: resume, processes, ZeRO-3, artefacts, refusals, restore."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lsvcr import cli
from lsvcr.experiments.against import Question, compare
from lsvcr.experiments.runs import load_run, load_task_runs
from lsvcr.schema import Task
from lsvcr.training.rank_evaluate import evaluate_checkpoint
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import read_json
from tests.training.align_runs import run_processes
from tests.training.hllm_runs import single_process_runs, two_process_runs

ENDS = ("last/trainer.safetensors", "last/sr.safetensors", "best/sr.safetensors")
Runs = tuple[Path, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def one(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs of a single process."""
    folder = tmp_path_factory.mktemp("hllm-one")
    return folder, run_processes(single_process_runs, 1, folder, data=str(tiny_data))


@pytest.fixture(scope="module")
def two(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs of two processes."""
    folder = tmp_path_factory.mktemp("hllm-two")
    return folder, run_processes(two_process_runs, 2, folder, data=str(tiny_data))


def logged(run: Path, *names: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "train/tokens_per_s"} for line in lines]


@pytest.mark.parametrize("runs", ["one", "two"])
def test_a_killed_run_called_again_ends_with_the_bits_of_an_uninterrupted_one(
    runs: str, request: pytest.FixtureRequest
) -> None:
    folder, _ = request.getfixturevalue(runs)
    for name in ENDS:
        first, second = load_file(folder / "straight" / name), load_file(folder / "cut" / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items())
    runs_of = [folder / name for name in ("straight", "cut")]
    assert read_json(runs_of[0] / "metrics.json") == read_json(runs_of[1] / "metrics.json")
    for protocol in ("full", "sampled"):
        rows = [load_run(run, protocol) for run in runs_of]
        assert all(np.array_equal(values, rows[1].values[name]) for name, values in rows[0].values.items())
    assert logged(folder / "straight") == logged(folder / "cut")
    assert read_json(folder / "cut" / "last" / "trainer.json")["step"] == 5


@pytest.mark.parametrize("name", ["in_batch", "sampled"])
def test_two_processes_have_the_loss_and_gradients_of_one_with_the_joined_batch(
    one: Runs, two: Runs, name: str
) -> None:
    whole, halves = one[1][0][name], [found[name] for found in two[1]]
    assert whole["users"] == 8 and [half["users"] for half in halves] == [4, 4]
    for half in halves:
        assert half["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        assert half["gradients"].keys() == whole["gradients"].keys()
        for key, gradient in whole["gradients"].items():
            torch.testing.assert_close(half["gradients"][key], gradient, rtol=2e-3, atol=2e-6)
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in whole["gradients"].values())
    # Every distinct video is read once, by one of them.
    read = [video for half in halves for share in half["read"] for video in share]
    assert sorted(read) == whole["items"] == halves[0]["items"]


def test_a_finished_run_is_told_and_other_settings_are_refused(one: Runs) -> None:
    folder, (found,) = one
    assert found["again"] == read_json(folder / "straight" / "metrics.json")
    assert "learning_rate was 0.003, is 0.01; " in found["other_settings"]
    assert "lora_r was 2, is 4" in found["other_settings"]
    assert "gradient_accumulation_steps was 1, is 2" in found["other_negatives"]
    assert "micro-step of one user has no negatives" in found["one_user"]
    assert re.search(r"--item_fields: 'genre' is no column of .*it has title", found["no_column"])


def test_it_learns_and_stops_when_it_gets_no_better(one: Runs) -> None:
    run = one[0] / "learns"
    lines = logged(run)
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert sum(losses[-3:]) / 3 < 0.75 * sum(losses[:3]) / 3
    report = read_json(run / "metrics.json")
    # Of 32 videos 8 are of a user's topic: who knows the topic alone has a recall of 10 / 32 by chance, 1 at best.
    assert report["protocols"]["full"]["metrics"]["recall@10"]["value"] > 0.8
    figures = [line["val/ndcg@10"] for line in lines if "val/ndcg@10" in line]
    best = figures.index(max(figures))
    assert len(figures) == min(4, best + 3)
    assert read_json(run / "best" / "manifest.json")["step"] == 10 * (best + 1)


def test_a_frozen_item_llm_is_not_in_the_checkpoint(one: Runs) -> None:
    weights = load_file(one[0] / "frozen" / "best" / "sr.safetensors")
    assert {name.split(".")[0] for name in weights} == {"user_llm", "heads"}
    full = load_file(one[0] / "learns" / "best" / "sr.safetensors")
    assert {name.split(".")[0] for name in full} == {"item_llm", "user_llm", "heads"}
    assert not [name for name in full if "lm_head" in name or name.startswith("user_llm.model.embed")]


@pytest.mark.parametrize("name", ["straight", "learns", "frozen"])
def test_a_restored_run_gives_the_figures_of_its_test(one: Runs, tiny_data: Path, name: str) -> None:
    run = one[0] / name
    report = read_json(run / "metrics.json")
    assert evaluate_checkpoint(str(run), str(tiny_data)) == report
    assert report["model"] == "hllm_full"


def test_tables_and_comparisons_read_a_run(one: Runs, tiny_data: Path) -> None:
    run = one[0] / "learns"
    found = load_task_runs(run)
    value = read_json(run / "metrics.json")["protocols"]["full"]["metrics"]["ndcg@10"]["value"]
    assert found[Task.REC].mean("ndcg@10") == pytest.approx(value)
    question = Question(str(tiny_data), "test", "full", ("ndcg@10",), False)
    assert compare(str(run), str(one[0] / "frozen"), question)


def test_a_run_has_a_page(one: Runs, tmp_path: Path) -> None:
    from lsvcr.experiments.report import write_report
    from lsvcr.settings import ReportSettings

    told = {}
    for name in ("straight", "learns"):
        page = write_report(ReportSettings(run=str(one[0] / name), out=str(tmp_path / f"{name}.html")))
        told[name] = page.read_text()
        assert "hllm_full" in told[name] and "with LLMs in training" in told[name]
    assert "finished: 5 of 5 steps" in told["straight"]


def test_no_bundle_is_made_of_a_run_and_it_is_told_what_can_be(
    one: Runs, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(tiny_data), "--out", str(tmp_path / "bundle")]
    assert cli.main(["export", str(one[0] / "straight"), *words]) != 0
    told = capsys.readouterr().err
    assert "is a run of `lsvcr hllm`, whose user model is an LLM" in told
    assert "`lsvcr train hllm_light --time_buckets none`" in told and "`lsvcr train sasrec` can be" in told
    assert not list(tmp_path.iterdir())


def test_another_dataset_is_refused(one: Runs, tiny_raw: Path, tmp_path: Path) -> None:
    from lsvcr.data.prepare import prepare
    from lsvcr.settings import PrepareSettings

    other = prepare(
        PrepareSettings(raw=str(tiny_raw), out=str(tmp_path / "other"), user_core=3, split="temporal")
    )
    with pytest.raises(UserError, match="another dataset"):
        evaluate_checkpoint(str(one[0] / "straight"), str(other))


def test_cut_llms_have_the_losses_and_the_test_of_whole_ones(two: Runs) -> None:
    folder, found = two
    for rank in (0, 1):
        losses = found[rank]["losses"]
        assert losses["z3"] == pytest.approx(losses["z2"], rel=1e-4)
        assert losses["changed"] == pytest.approx(losses["z2"], rel=1e-4)
    second = load_file(folder / "z2" / "last" / "sr.safetensors")
    for name in ("z3", "changed"):
        first = load_file(folder / name / "last" / "sr.safetensors")
        assert first.keys() == second.keys()
        for key, value in first.items():
            torch.testing.assert_close(value, second[key], rtol=1e-3, atol=1e-4)
    values = [
        read_json(folder / name / "metrics.json")["protocols"]["full"]["metrics"]["ndcg@10"]["value"]
        for name in ("z2", "z3")
    ]
    assert values[0] == pytest.approx(values[1], abs=0.05)
