"""Stage one as a whole: resume, processes, accumulation, artefacts, refusals."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lsvcr.llm.families import fingerprint
from lsvcr.llm.loading import load_llm
from lsvcr.settings import HllmSettings
from lsvcr.training.align_state import cut_of, read_trainer
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import read_json
from tests.training.align_runs import (
    run_processes,
    single_process_runs,
    two_process_runs,
)

ROOT = Path(__file__).parents[2]


def same_tensors(left: Path, right: Path) -> None:
    """Two safetensors files are equal bit for bit."""
    first, second = load_file(left), load_file(right)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def logged(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "train/tokens_per_s"} for line in lines]


ENDS = (
    "last/trainer.safetensors",
    "last/sr.safetensors",
    "last/adapter/adapter_model.safetensors",
    "best/sr.safetensors",
    "best/adapter/adapter_model.safetensors",
)
"""What a run leaves."""

Runs = tuple[Path, list[dict]]
"""The folder of some runs, and what each process found."""


@pytest.fixture(scope="module")
def one(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs of a single process."""
    folder = tmp_path_factory.mktemp("one")
    return folder, run_processes(single_process_runs, 1, folder, data=str(tiny_data))


@pytest.fixture(scope="module")
def two(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs of two processes."""
    folder = tmp_path_factory.mktemp("two")
    return folder, run_processes(two_process_runs, 2, folder, data=str(tiny_data))


@pytest.mark.parametrize("runs", ["one", "two"])
def test_a_killed_run_called_again_ends_with_the_bits_of_an_uninterrupted_one(
    runs: str, request: pytest.FixtureRequest
) -> None:
    folder, found = request.getfixturevalue(runs)
    assert "last" in found[0]["left_by_the_killed"]
    straight, cut = folder / "straight", folder / "cut"
    for name in ENDS:
        same_tensors(straight / name, cut / name)
    for name in ("wide_rec", "taste"):
        assert any(f"train/{name}" in line for line in logged(straight))
    assert logged(straight) == logged(cut)  # and no step is logged twice
    standing = read_json(cut / "last" / "trainer.json")
    assert standing["step"] == 5
    assert not [path for path in cut.iterdir() if path.name.startswith((".tmp", ".old"))]


def test_a_damaged_checkpoint_is_told_and_an_older_one_taken(one: Runs) -> None:
    """A flipped bit in last/; what follows from the older checkpoint are the bits of the uninterrupted run."""
    folder, found = one[0], one[1][0]
    assert found["kept"] == ["step-000002", "step-000003", "step-000004"]
    file = folder / "alone" / "last" / "trainer.safetensors"
    assert found["damaged_alone"].startswith(f"{file} is damaged: its checksum is not")
    assert "--resume False" in found["damaged_alone"] and "--save_total_limit" in found["damaged_alone"]
    assert found["damaged_kept"] == ""
    (told,) = found["told"]
    kept = folder / "kept"
    assert f"{kept / 'last' / 'trainer.safetensors'} is damaged" in told
    assert f"{kept / 'step-000004' / 'trainer.safetensors'} is damaged" in told
    assert f"goes on from {kept / 'step-000003'}" in told
    assert found["kept_in_the_end"] == ["step-000003", "step-000004", "step-000005"]
    for name in ENDS:
        same_tensors(folder / "straight" / name, kept / name)
    same_tensors(
        folder / "straight" / "last" / "trainer.safetensors", kept / "step-000005" / "trainer.safetensors"
    )


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(one: Runs) -> None:
    folder, found = one[0], one[1][0]
    run = folder / "full"
    assert found["full"].startswith(f"the disk of {run} is full: the next checkpoint takes 0.")
    assert f"it goes on from step 2, {run / 'last'} is intact" in found["full"]
    assert not [name for name in found["left_by_the_full"] if name.startswith((".tmp", ".new", ".old"))]
    assert found["full_again"] == ""
    for name in ENDS:
        same_tensors(folder / "straight" / name, run / name)


def test_the_size_of_checkpoints_is_known_before_the_run_starts(one: Runs) -> None:
    last, best, limit = one[1][0]["estimated"]
    assert limit == 0
    for estimate, name in ((last, "last"), (best, "best")):
        files = (one[0] / "plain" / name).rglob("*.safetensors")
        assert estimate == pytest.approx(sum(file.stat().st_size for file in files), rel=0.15)


def test_one_process_with_a_batch_equals_two_with_half_of_it(one: Runs, two: Runs) -> None:
    """Loss parts, gradients and cached states, where process 0 has only Rec and process 1 only CommRank samples."""
    whole, halves = one[1][0], two[1]
    assert whole["tasks"] == [True] * 3 + [False] * 3
    assert [half["tasks"] for half in halves] == [[True] * 3, [False] * 3]
    assert halves[0]["texts"] != halves[1]["texts"]
    assert min(whole["losses"]["wide_rec"], whole["losses"]["taste"]) > 0
    assert whole["read"] == halves[0]["read"]
    comments = sum(code % 2 for code in whole["codes"])
    assert whole["read"] == [len(whole["codes"]) - comments, comments]
    assert min(whole["read"]) > 0
    for half in halves:
        assert half["losses"] == pytest.approx(whole["losses"], rel=1e-5)
        torch.testing.assert_close(half["cache"], whole["cache"])
        for name, gradient in whole["gradients"].items():
            torch.testing.assert_close(half["gradients"][name], gradient, rtol=1e-3, atol=2e-6, msg=name)
    silent = [name for name, gradient in whole["gradients"].items() if not gradient.any()]
    assert not silent


def test_a_folder_of_another_run_is_refused(one: Runs) -> None:
    said = one[1][0]["other_settings"]
    assert "learning_rate was 0.0003, is 0.01" in said
    assert "lora_r was 8, is 4" in said
    assert "--resume False" in said
    assert "were 2, are 4" in one[1][0]["other_batch"]
    assert one[1][0]["free_settings"] == ""


def test_a_best_of_something_else_is_not_replaced(one: Runs) -> None:
    found = one[1][0]
    kind, other, converted = found["best_of_others"]
    assert "best_alone holds a run of another kind (stage-two there, stage-one here)" in kind
    assert "started differently: lora_r was 8, is 4" in other
    assert "holds a checkpoint that was converted" in converted
    assert found["best_stood"]
    assert found["best_of_its_own"] == ""
    written, plain = (load_file(one[0] / run / "best" / "sr.safetensors") for run in ("best_alone", "plain"))
    assert all(torch.equal(value, plain[name]) for name, value in written.items())


def test_a_continued_run_contrasts_as_many_samples_however_it_is_cut(one: Runs) -> None:
    said = one[1][0]["other_contrast"]
    assert "contrasted with one another (--contrast_batch, else batch x processes) were 4, are 2" in said
    assert "samples of an optimiser step" not in said
    losses = ["lm", "rec", "behaviour", "preference"]
    same_gradients(one[0] / "contrast-4", one[0] / "contrast-anew", losses)


def test_what_a_cut_of_a_step_changes() -> None:
    """Wide batches are per micro-step; without contrast nothing depends on it; HLLM's settings know neither."""
    own = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "contrast_batch": 0}
    weights = {"rec_loss_weight": 1.0, "contrast_loss_weight": 0.5}
    assert list(cut_of({**own, **weights}, 2).values()) == [16, 4]
    assert list(cut_of({**own, **weights, "contrast_batch": 8}, 2).values()) == [16, 8]
    assert list(cut_of({**own, **weights, "wide_titles": 3}, 2).values()) == [16, 4, 4]
    assert list(cut_of({**own, "taste_texts": 3}, 2).values()) == [16, 4]
    assert list(cut_of(dataclasses.asdict(HllmSettings()), 2).values()) == [16]


def test_the_standing_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "trainer.json").write_text('{"step": 3, "best": null, "seconds": 1.0}')
    with pytest.raises(UserError, match=r"trainer.json has no window, so another version.*--resume False"):
        read_trainer(tmp_path / "last")


def test_wrong_settings_are_told_before_anything_is_loaded(one: Runs) -> None:
    assert "config/nowhere.json: no such file" in one[1][0]["missing_config"]
    assert "--taste_texts -1: give 0 (none) or more" in one[1][0]["wide_below_zero"]
    assert "lsvcr embed --checkpoint none" in one[1][0]["wide_without_vectors"]
    assert "micro-step of one sample has nothing to contrast it with" in one[1][0]["one_to_contrast"]
    assert "--max_phis_len 60 needs --max_position 60" in one[1][0]["too_long_histories"]


def test_accumulated_micro_batches_are_one_batch(one: Runs) -> None:
    """No micro-batch is lost and the sum is divided once."""
    same_gradients(one[0] / "whole", one[0] / "halves", ["lm"])


def test_a_contrastive_batch_is_the_same_however_it_is_cut(one: Runs, two: Runs) -> None:
    """Into micro-steps and processes."""
    whole = one[0] / "contrast-4"
    for other in (one[0] / "contrast-2", one[0] / "contrast-1", two[0] / "contrast-2", two[0] / "contrast-1"):
        same_gradients(whole, other, ["lm", "rec", "behaviour", "preference"])
    assert "give a multiple of the one that divides the other" in one[1][0]["uneven_contrast"]


def same_gradients(left: Path, right: Path, losses: list[str]) -> None:
    """Two runs had the same gradients, as their moments tell, and the same `losses`."""
    whole, parts = (load_file(run / "last" / "trainer.safetensors") for run in (left, right))
    moved = 0
    for name, value in whole.items():
        # AdamW divides by the gradient's own size, so tiny gradients would show rounding: compare the moments.
        if name.startswith("exp_avg."):
            torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-7, msg=name)
            moved += int(value.abs().max() > 1e-5)
    assert moved > 10
    first, other = (logged(run)[0] for run in (left, right))
    assert first["train/grad_norm"] == pytest.approx(other["train/grad_norm"], rel=1e-3)
    for name in losses:
        assert first[f"train/{name}"] == pytest.approx(other[f"train/{name}"], rel=1e-5)


def test_loss_falls_in_a_few_steps(one: Runs) -> None:
    losses = [line["train/loss"] for line in logged(one[0] / "learns") if "train/loss" in line]
    assert len(losses) == 22
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_a_run_tells_once_when_it_will_end(one: Runs) -> None:
    (told,) = [line for line in one[1][0]["learns_said"] if "to go, until" in line]
    assert re.search(r"\d\.\d\d s a step so far: \d+ s to go, until 20\d\d-", told)


def test_a_dry_run_tells_what_a_run_will_take_and_writes_nothing(one: Runs) -> None:
    folder, found = one
    told = dict(re.split(r"  +", line, maxsplit=1) for line in found[0]["dry"].splitlines()[1:])
    assert not (folder / "dry").exists()
    assert re.fullmatch(r"162 \(96 Rec, 66 CommRank\)", told["samples"])
    assert told["steps"].startswith("5 of 4 samples, 0.12 epochs; 1 process")
    a_sample, millions, most = (
        float(number.replace(",", "")) for number in re.findall(r"[\d.,]*\d", told["tokens"])
    )
    assert 100 < a_sample < most < 4 * a_sample and millions == pytest.approx(20 * a_sample / 1e6, abs=0.06)
    parts = [float(number) for number in re.findall(r"\d\.\d\d", told["memory, from shapes"])]
    assert parts[0] == pytest.approx(sum(parts[1:]), abs=0.03)
    peak = float(told["memory, measured"].split()[0])
    assert 0.3 < peak < 5
    seconds, speed = re.match(
        r"([\d.]+) s a step, ([\d,]+) tokens a second", told["speed, measured"]
    ).groups()
    assert float(seconds) * float(speed.replace(",", "")) == pytest.approx(4 * a_sample, rel=0.5)
    assert told["time"].endswith("s, and validations and checkpoints")


def test_every_loss_part_and_validation_figure_is_logged(one: Runs) -> None:
    lines = logged(one[0] / "plain")
    train = {name for line in lines for name in line if name.startswith("train/")}
    assert train == {f"train/{name}" for name in (
        "loss", "lm", "rec", "behaviour", "preference", "grad_norm", "learning_rate", "epoch",
        "sr_variance", "llm_variance")}  # fmt: skip
    validation = {name for line in lines for name in line if name.startswith("val/")}
    assert {
        "val/retrieval@1",
        "val/rec_ndcg@10",
        "val/comm_rank_ndcg@10",
        "val/lm",
        "val/selection",
    } <= validation
    assert [line["step"] for line in lines if "val/lm" in line] == [2, 4, 5]


def test_artefacts_explain_themselves(one: Runs) -> None:
    folder, _ = one
    manifest = read_json(folder / "plain" / "best" / "manifest.json")
    assert manifest["kind"] == "stage-one"
    assert manifest["settings"]["model_name_or_path"] == "tiny-random"
    assert manifest["llm_fingerprint"] == fingerprint(load_llm("tiny-random")[0])
    adapter_files = {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"}
    assert set(manifest["files"]) == {"sr.safetensors", *adapter_files}
    assert {"torch", "deepspeed", "peft"} <= set(manifest["versions"])
    best = max(line["val/selection"] for line in logged(folder / "plain") if "val/selection" in line)
    assert manifest["metrics"]["selection"] == best
    heads = load_file(folder / "plain" / "best" / "sr.safetensors")
    assert {name.split(".")[0] for name in heads} == {"sr", "head", "contrast"}
    assert {tensor.dtype for tensor in heads.values()} == {torch.float32}
    adapter = load_file(folder / "plain" / "best" / "adapter" / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)
    assert not (folder / "plain" / "best" / "trainer.safetensors").exists()


def test_lora_can_be_turned_off_and_a_run_started_anew(one: Runs) -> None:
    """`--lora False` trains the heads alone; --resume False replaces the earlier run in the folder."""
    folder = one[0] / "heads_only"
    manifest = read_json(folder / "best" / "manifest.json")
    assert manifest["settings"]["lora"] is True
    assert manifest["step"] == 2
    assert (folder / "best" / "adapter").is_dir()
    assert [line["step"] for line in logged(folder) if "train/loss" in line] == [2]


def test_the_whole_line_under_torchrun(tiny_data: Path, tmp_path: Path) -> None:
    """The published command with two processes in bf16, and once more: nothing is left to do."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "train.py"),
        "--model_name_or_path", "tiny-random", "--data_path", str(tiny_data), "--output_dir", str(tmp_path / "run"),
        "--hidden", "16", "--max_phis_len", "4", "--max_chis_len", "4", "--max_source_length", "1500",
        "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--num_train_epochs", "0.05",
        "--eval_pool", "4", "--gradient_checkpointing", "True", "--learning_rate", "3e-4", "--bf16", "True",
        "--lora", "True", "--load_best_model_at_end", "False", "--dataloader_num_workers", "0",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    told = done.stderr.splitlines()
    assert "2 processes on cpu" in done.stderr
    assert len(told) < 12, done.stderr  # quiet but for what a person wants to see
    for folder in ("best", "last"):
        assert (tmp_path / "run" / folder / "adapter" / "adapter_model.safetensors").is_file()
        assert read_json(tmp_path / "run" / folder / "manifest.json")["processes"] == 2
    same_tensors(tmp_path / "run" / "best" / "sr.safetensors", tmp_path / "run" / "last" / "sr.safetensors")
    assert (tmp_path / "run" / "curves").is_dir()
