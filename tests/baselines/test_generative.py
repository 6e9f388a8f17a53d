"""Tuning: what the loss counts, that steps do not depend on their cut, and that a killed run goes on exactly."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lsvcr.baselines import generative
from lsvcr.baselines.alpaca_prompts import Example, collate
from lsvcr.baselines.generations import generate
from lsvcr.baselines.generative import answer_loss, tune
from lsvcr.baselines.generative_state import OPTIMIZER_FILE, Masters, read_run
from lsvcr.llm.loading import load_llm
from lsvcr.llm.lora import WEIGHTS_FILE, add_lora, load_adapter
from lsvcr.models import checkpoint
from lsvcr.schema import ADAPTER_DIR, BEST_DIR, LAST_DIR, MANIFEST_FILE
from lsvcr.training.schedule import learning_rate_factor
from lsvcr.utils.errors import UserError
from lsvcr.utils.lock import run_lock
from tests.generative_world import generate_settings, tune_settings

EXAMPLES = [
    Example([5, 6, 7, 8], [30, 31, 2]),
    Example([40, 41], [50, 2]),
    Example([9, 9, 9, 9, 9, 9], [60, 61, 62, 63, 2]),
]


def adapter(run: Path, which: str = BEST_DIR) -> dict[str, torch.Tensor]:
    return load_file(run / which / ADAPTER_DIR / WEIGHTS_FILE)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("on_inputs", [False, True])
def test_the_loss_counts_the_answer_alone_or_the_prompt_too(tiny_llm: Any, on_inputs: bool) -> None:
    model = tiny_llm[0]
    total, count = answer_loss(model, collate(EXAMPLES, 0, on_inputs))
    expected, tokens = 0.0, 0
    for example in EXAMPLES:
        ids = [*example.prompt, *example.answer]
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        first = 1 if on_inputs else len(example.prompt)
        for place in range(first, len(ids)):
            expected -= logits[place - 1, ids[place]].item()
            tokens += 1
    assert count == tokens and total.item() == pytest.approx(expected, rel=1e-5)


def test_padding_changes_no_gradient(tiny_llm: Any) -> None:
    model = tiny_llm[0]
    answer_loss(model, collate(EXAMPLES, 0, False))[0].backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for example in EXAMPLES:
        answer_loss(model, collate([example], 0, False))[0].backward()
    for parameter, expected in zip(model.parameters(), together, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-5)


def test_how_a_step_is_cut_into_batches_does_not_matter(tiny_data: Path, tmp_path: Path) -> None:
    cuts = {"one": (8, 1), "many": (1, 8), "uneven": (3, 3)}
    common = {"lora_dropout": 0.0, "num_train_epochs": 1, "max_train_samples": 8}
    for name, (batch, accumulation) in cuts.items():
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        tune(tune_settings(tiny_data, tmp_path / name, **common, **sizes), learning_rate_factor)
    one = adapter(tmp_path / "one")
    for name in ("many", "uneven"):
        for key, value in adapter(tmp_path / name).items():
            torch.testing.assert_close(value, one[key], rtol=1e-3, atol=1e-4)


def test_a_run_learns_and_tells(generative_run: Path) -> None:
    lines = [json.loads(line) for line in (generative_run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["val/loss"] for line in lines if "val/loss" in line]
    checkpoint, manifest = read_run(generative_run)
    progress = manifest["progress"]
    assert checkpoint == generative_run / BEST_DIR and progress["best"] == min(losses)
    last = json.loads((generative_run / LAST_DIR / MANIFEST_FILE).read_text())["progress"]
    # 20 records in steps of 8: three an epoch.
    assert last["step"] == 3 * last["epoch"] and last["finished"] and losses[-1] < losses[0]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, last["step"] + 1))


def test_a_killed_run_goes_on_to_the_last_bit(
    tiny_data: Path, generative_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tune_settings(tiny_data, tmp_path / "run")
    real, calls = generative.Tuner._step, []

    def dies(self: Any, epoch: int, step: int) -> float:
        calls.append((epoch, step))
        if len(calls) == 5:  # in the middle of the second epoch
            raise KeyboardInterrupt
        return real(self, epoch, step)

    monkeypatch.setattr(generative.Tuner, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        tune(settings, learning_rate_factor)
    with pytest.raises(UserError, match="not finished"):
        read_run(tmp_path / "run")
    tune(settings, learning_rate_factor)
    assert calls[5:] == [(1, 0), (1, 1), (1, 2)]
    assert same(adapter(tmp_path / "run"), adapter(generative_run))
    state = [load_file(run / LAST_DIR / OPTIMIZER_FILE) for run in (tmp_path / "run", generative_run)]
    assert same(*state)
    # Done is done, and no step is logged twice.
    tune(settings, learning_rate_factor)
    assert len(calls) == 8
    logs = [(run / "metrics.jsonl").read_text() for run in (tmp_path / "run", generative_run)]
    assert logs[0] == logs[1]


def test_another_runs_folder_is_refused(tiny_data: Path, generative_run: Path) -> None:
    with pytest.raises(UserError, match=r"lora_r is 4 here and 8 there.*--resume False"):
        tune(tune_settings(tiny_data, generative_run, lora_r=4), learning_rate_factor)


def test_a_best_of_another_kind_is_not_replaced(tiny_data: Path, tmp_path: Path) -> None:
    """As `lsvcr convert` writes it: best/ alone."""
    checkpoint.save(tmp_path / BEST_DIR, {"w": torch.ones(1)}, {"kind": "stage-one"})
    with pytest.raises(UserError, match=r"another kind \(stage-one there, generative here\).*--output_dir"):
        tune(tune_settings(tiny_data, tmp_path), learning_rate_factor)
    assert checkpoint.load(tmp_path / BEST_DIR).manifest == {"kind": "stage-one"}


def test_two_runs_in_one_folder_are_refused(tiny_data: Path, tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(UserError, match="another run is training in"):
        tune(tune_settings(tiny_data, tmp_path), learning_rate_factor)
    assert not (tmp_path / LAST_DIR).exists()


def test_divergence_is_told_and_the_epoch_before_stays(tiny_data: Path, tmp_path: Path) -> None:
    """The only step of the epoch has a finite loss, and leaves weights without one."""
    changed = {"learning_rate": 1e30, "max_train_samples": 8, "max_val_samples": 4}
    with pytest.raises(UserError, match=r"validation loss is (nan|inf) after epoch 1: lower --learning_rate"):
        tune(tune_settings(tiny_data, tmp_path, **changed), learning_rate_factor)
    for which in (BEST_DIR, LAST_DIR):
        assert json.loads((tmp_path / which / MANIFEST_FILE).read_text())["progress"]["epoch"] == 0
    assert "val/loss" not in (tmp_path / "metrics.jsonl").read_text()


def test_without_epochs_the_llm_is_left_as_it_was(tiny_data: Path, tmp_path: Path, tiny_llm: Any) -> None:
    tune(tune_settings(tiny_data, tmp_path / "run", num_train_epochs=0), learning_rate_factor)
    read_run(tmp_path / "run")
    model, ids = tiny_llm[0], torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    adapted = load_adapter(deepcopy(model), tmp_path / "run" / BEST_DIR / ADAPTER_DIR)
    assert torch.equal(adapted(ids).logits, before)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"learning_rate": 0.0}, "--learning_rate"),
        ({"num_train_epochs": -1}, "--num_train_epochs"),
        ({"warmup_ratio": 2.0}, "--warmup_ratio"),
        ({"lora_targets": "q_prj"}, "did you mean q_proj"),
        ({"template": "chat"}, "--template alpaca"),
    ],
)
def test_settings_that_cannot_work_are_told(
    tiny_data: Path, tmp_path: Path, changed: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tune(tune_settings(tiny_data, tmp_path / "run", **changed), learning_rate_factor)


def test_a_launcher_of_several_processes_is_refused(
    tiny_data: Path, generative_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="lsvcr tune runs as one process"):
        tune(tune_settings(tiny_data, generative_run), learning_rate_factor)
    with pytest.raises(UserError, match="lsvcr generate runs as one process"):
        generate(generate_settings(generative_run))


def test_lora_sits_where_it_is_asked_for(tiny_llm: Any) -> None:
    adapted = add_lora(tiny_llm[0], 2, 4, 0.0, ["q_proj", "v_proj"])
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 2 and all(".q_proj." in name or ".v_proj." in name for name in trained)


def test_small_steps_of_bfloat16_weights_add_up() -> None:
    model = load_llm("tiny-random", dtype=torch.bfloat16)[0]
    adapted = add_lora(model, 2, 4, 0.0)
    own = {name: p for name, p in adapted.named_parameters() if p.requires_grad and "lora_A" in name}
    masters = Masters(adapted)
    optimizer = torch.optim.SGD(masters.weights.values(), lr=1.0)
    before = {name: p.detach().float().clone() for name, p in own.items()}
    step = 1e-5  # of weights around 0.1, whose bfloat16 neighbours are 5e-4 apart
    for _ in range(200):
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, -step)
        masters.take_gradients()
        optimizer.step()
        masters.give_weights()
        optimizer.zero_grad()
    for name, parameter in own.items():
        assert parameter.dtype == torch.bfloat16
        torch.testing.assert_close(parameter.float(), before[name] + 200 * step, rtol=1e-2, atol=2e-4)
