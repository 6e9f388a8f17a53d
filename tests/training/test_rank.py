"""Stage two from end to end on a planted world: it learns, resumes, refuses, and counts right."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lsvcr.baselines.popularity import evaluate_popularity
from lsvcr.data.store import open_dataset
from lsvcr.evaluation.metrics import DEFAULT_METRICS
from lsvcr.evaluation.result import load_rows
from lsvcr.evaluation.significance import paired
from lsvcr.schema import Task
from lsvcr.training import rank as training
from lsvcr.training.rank import run
from lsvcr.training.rank_evaluate import RankJudge, evaluate_checkpoint
from lsvcr.utils.errors import UserError
from tests.training.rank_runs import NARROW, TOPICS, VIDEOS, settings, write_planted

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """One longer Rec run that several tests look at."""
    out = tmp_path_factory.mktemp("run") / "rec"
    return out, run(settings(data, out, num_train_epochs=15, report_to="tensorboard"))


def weights(out: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(out / which / "sr.safetensors")


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


def value(report: dict, metric: str, protocol: str = "full") -> float:
    return report["protocols"][protocol]["metrics"][metric]["value"]


def test_loss_falls_and_the_planted_preference_is_recovered(trained: tuple[Path, dict], data: Path) -> None:
    out, report = trained
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["train/loss"] < 0.7 * lines[0]["train/loss"]
    # A user's topic has 6 of the 24 videos: who knows it finds the target among the first 6.
    assert value(report, "recall@10") > 0.9
    crowd = evaluate_popularity(open_dataset(data), Task.REC)["full"]
    assert crowd.mean("recall@10") == pytest.approx(10 / VIDEOS)
    assert paired(load_rows(out / "rows_full.safetensors"), crowd, "ndcg@10").interval[0] > 0


def test_comment_preference_is_recovered(data: Path, tmp_path: Path) -> None:
    names = {"photo_emb_file": NARROW[0], "comment_emb_file": NARROW[1]}
    report = run(
        settings(data, tmp_path, finetune_task="CommRank", num_train_epochs=12, patience=12, **names)
    )
    assert value(report, "recall@1") > 0.8  # chance is a third
    assert value(report, "recall@1") == value(
        report, "recall@1", "sampled"
    )  # the stored lists are the whole ones


def test_evaluate_gives_exactly_the_figures_of_the_run(trained: tuple[Path, dict], data: Path) -> None:
    out, report = trained
    assert json.loads((out / "metrics.json").read_text()) == report
    assert evaluate_checkpoint(str(out), str(data)) == report
    assert evaluate_checkpoint(str(out / "best"), str(data), "test") == report
    assert evaluate_checkpoint(str(out), str(data), "val")["split"] == "val"


def test_best_checkpoint_is_the_one_that_validated_best(trained: tuple[Path, dict]) -> None:
    out, _ = trained
    curve = [json.loads(line)["val/ndcg@5"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    manifest = json.loads((out / "best" / "manifest.json").read_text())
    assert manifest["kind"] == "stage-two"
    assert manifest["progress"]["epoch"] == int(np.argmax(curve)) + 1
    assert manifest["metrics"]["val/ndcg@5"] == max(curve)


def test_every_epoch_is_one_line_and_one_point_of_every_curve(trained: tuple[Path, dict]) -> None:
    """`metrics.jsonl` and TensorBoard hold the same numbers: losses, speed, and all metrics of the validation."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, _ = trained
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) > 5
    assert [line.pop("step") for line in lines] == [5 * epoch for epoch in range(1, len(lines) + 1)]
    names = {f"val/{metric}" for metric in DEFAULT_METRICS}
    names |= {f"train/{name}" for name in ("loss", "ranking", "id_text", "samples_per_second")}
    assert all(line.keys() == names for line in lines)
    curves = EventAccumulator(str(out / "curves")).Reload()
    assert set(curves.Tags()["scalars"]) == names
    for name in names:
        points = [(point.step, point.value) for point in curves.Scalars(name)]
        assert points == [
            (5 * epoch, pytest.approx(line[name], rel=1e-6)) for epoch, line in enumerate(lines, start=1)
        ]


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_the_optimiser_gets_the_rates_of_the_schedule(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """15 steps, the first 3 of them warm-up; the rate a step is made with, not the one before or after."""
    rates: list[float] = []
    betas: set[tuple[float, float]] = set()
    update = training.Trainer._update

    def spy(self: training.Trainer, step: int) -> None:
        update(self, step)
        rates.extend(group["lr"] for group in self.optimizer.param_groups)
        betas.update(group["betas"] for group in self.optimizer.param_groups)

    monkeypatch.setattr(training.Trainer, "_update", spy)
    rate = {"learning_rate": 6e-3, "warmup_ratio": 0.2, "lr_scheduler_type": kind, "adam_beta2": 0.97}
    run(settings(data, tmp_path, **rate))
    assert betas == {(0.9, 0.97)}
    left = [1 - done / 12 for done in range(12)]
    falls = {
        "constant": [1.0] * 12,
        "linear": left,
        "cosine": [(1 - math.cos(math.pi * part)) / 2 for part in left],
    }
    assert rates == pytest.approx([6e-3 * factor for factor in [1 / 3, 2 / 3, 1.0, *falls[kind]]])


def test_a_bar_tells_task_progress_time_left_and_the_best_figure(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lsvcr.utils.logging.PLAIN_SECONDS", 0.0)
    run(settings(data, tmp_path, num_train_epochs=2))
    told = [line for line in capsys.readouterr().err.splitlines() if "stage two Rec:" in line]
    duration = r"\d+ (s|min)"
    assert re.search(rf"16/160, {duration} so far, {duration} left, epoch 1, ndcg@5 -$", told[0])
    assert re.search(rf"96/160, {duration} so far, {duration} left, epoch 2, ndcg@5 \d\.\d{{4}}$", told[5])
    assert "160/160" in told[-1] and " left" not in told[-1]


def test_a_finished_run_is_not_trained_again(
    trained: tuple[Path, dict], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, report = trained
    monkeypatch.setattr(training, "Trainer", None)
    assert run(settings(data, out, num_train_epochs=15)) == report


def test_early_stopping_counts_validations(data: Path, tmp_path: Path) -> None:
    run(settings(data, tmp_path, num_train_epochs=30, learning_rate=1e-9, patience=2))
    state = json.loads((tmp_path / "last" / "manifest.json").read_text())["progress"]
    assert (state["epoch"], state["best_epoch"], state["without_gain"]) == (3, 1, 2)


@pytest.mark.parametrize("metric", ["mrr@3", "recall@2", "NDCG@7"])
def test_any_metric_can_stop_and_pick(data: Path, tmp_path: Path, metric: str) -> None:
    """Also one that is not reported by default; a patience of 1 ends at the first epoch without a better one."""
    run(settings(data, tmp_path, num_train_epochs=12, patience=1, metric_for_best_model=metric))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    curve = [line[f"val/{metric.lower()}"] for line in lines]
    state = json.loads((tmp_path / "last" / "manifest.json").read_text())["progress"]
    assert state["best"] == max(curve) and state["best_epoch"] == int(np.argmax(curve)) + 1
    # Every epoch but the last was better than all before it.
    assert all(later > before for before, later in zip(curve[:-1], curve[1:-1], strict=False))
    assert len(curve) == 12 or curve[-1] <= curve[-2]


def test_validation_can_rank_the_stored_candidates(data: Path, tmp_path: Path) -> None:
    """The ten of them here are easier than all 24 videos."""
    run(settings(data, tmp_path, num_train_epochs=2, val_protocol="sampled"))
    manifest = json.loads((tmp_path / "best" / "manifest.json").read_text())
    report = evaluate_checkpoint(str(tmp_path), str(data), "val")
    assert manifest["progress"]["best"] == value(report, "ndcg@5", "sampled") != value(report, "ndcg@5")


@pytest.mark.parametrize("strategy, epochs", [("steps", [2, 4, 5]), ("no", [])])
def test_when_validation_is_due(data: Path, tmp_path: Path, strategy: str, epochs: list[int]) -> None:
    run(settings(data, tmp_path, num_train_epochs=5, evaluation_strategy=strategy, eval_steps=2))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [i + 1 for i, line in enumerate(lines) if "val/ndcg@5" in line] == epochs
    if strategy == "no":
        assert_equal(weights(tmp_path, "best"), weights(tmp_path, "last"))


class Killed(BaseException):
    """Stands for kill -9: no clean-up of the loop sees it as an error."""


@pytest.mark.parametrize("task", ["Rec", "CommRank"])
@pytest.mark.parametrize("at", [0, 7, 10])
def test_interrupted_run_equals_the_uninterrupted_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, at: int
) -> None:
    """Stopped before the first step, in the middle of epoch 2, and at the start of epoch 3 (5 steps an epoch)."""
    common = {"finetune_task": task, "num_train_epochs": 3, "dropout": 0.2, "warmup_ratio": 0.2}
    common |= {"lr_scheduler_type": "cosine"}
    whole = run(settings(data, tmp_path / "whole", **common))
    update = training.Trainer._update

    def stop(self: training.Trainer, step: int) -> None:
        if step == at:
            raise Killed
        update(self, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training.Trainer, "_update", stop)
        run(settings(data, tmp_path / "cut", **common))
    continued = run(settings(data, tmp_path / "cut", **common))
    assert_equal(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert continued == whole
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [5, 10, 15]


@pytest.mark.parametrize("saved", [False, True])
def test_a_kill_just_before_or_after_a_checkpoint_leaves_one_line_an_epoch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    chosen = settings(data, tmp_path, num_train_epochs=3)
    save = training.RunFolder.save_last

    def save_and_die(self: training.RunFolder, *parts: object) -> None:
        if saved:
            save(self, *parts)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training.RunFolder, "save_last", save_and_die)
        run(chosen)
    run(chosen)
    lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [5, 10, 15]


def test_a_kill_between_the_two_renames_of_last_loses_nothing(data: Path, tmp_path: Path) -> None:
    chosen = settings(data, tmp_path, num_train_epochs=1)
    run(chosen)
    folder = training.RunFolder(training.set_up(chosen), 1, "no")
    before = folder.find()
    (tmp_path / "last").rename(tmp_path / ".old-0123abcd-last")
    assert before is not None and folder.find() == before
    assert (tmp_path / "last").is_dir()


def test_another_run_in_the_folder_is_refused_and_can_be_replaced(data: Path, tmp_path: Path) -> None:
    run(settings(data, tmp_path, num_train_epochs=1))
    with pytest.raises(UserError, match=r"learning_rate is 0\.1 here and 0\.005 there.*--resume False"):
        run(settings(data, tmp_path, num_train_epochs=1, learning_rate=0.1))
    run(settings(data, tmp_path, num_train_epochs=1, learning_rate=0.1, resume=False))
    manifest = json.loads((tmp_path / "last" / "manifest.json").read_text())
    assert manifest["settings"]["learning_rate"] == 0.1


@pytest.mark.parametrize("task", ["Rec", "CommRank"])
def test_accumulation_one_by_eight_equals_eight_by_one(data: Path, tmp_path: Path, task: str) -> None:
    """The gradients of all micro-batches count, the last, smaller step included (80 samples in steps of 24).

    The id-text contrast draws negatives inside a micro-batch, so that there the cut is part of the loss.
    """
    common = {"finetune_task": task, "num_train_epochs": 1, "id_text_loss_weight": 0.0}
    run(settings(data, tmp_path / "a", per_device_train_batch_size=24, **common))
    run(
        settings(data, tmp_path / "b", per_device_train_batch_size=3, gradient_accumulation_steps=8, **common)
    )
    both = [weights(tmp_path / name) for name in "ab"]
    # A softmax does not see these biases: their gradient is rounding noise, which Adam makes as large as any other.
    unseen = ("score.bias", "key.bias")
    a, b = ({n: t for n, t in part.items() if not n.endswith(unseen)} for part in both)
    assert_equal(a, b, tolerance=5e-5)


def test_accumulated_gradient_is_the_mean_not_the_last_micro_batch(data: Path, tmp_path: Path) -> None:
    """Before the first update of a 1 x 4 run the gradient is that of the four batches together."""
    grads: list[dict[str, torch.Tensor]] = []

    class Stop(Exception):
        pass

    class Spy(training.Trainer):
        def _update(self, step: int) -> None:
            grads.append({n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None})
            raise Stop

    for batch, accumulation in ((16, 1), (4, 4)):
        chosen = settings(
            data,
            tmp_path / str(batch),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            id_text_loss_weight=0.0,
        )
        accelerator = training.start_accelerator()
        setup = training.set_up(chosen)
        folder = training.RunFolder(setup, 1, "no")
        with pytest.raises(Stop):
            Spy(accelerator, setup, folder, RankJudge(setup)).train(None)
    assert_equal(grads[0], grads[1], tolerance=1e-5)


@pytest.mark.parametrize("task", ["Rec", "CommRank"])
@pytest.mark.parametrize("flag", ["disable_id", "disable_text", "disable_comments"])
def test_ablations_train_and_evaluate(data: Path, tmp_path: Path, task: str, flag: str) -> None:
    report = run(settings(data, tmp_path, finetune_task=task, num_train_epochs=1, **{flag: True}))
    assert evaluate_checkpoint(str(tmp_path), str(data)) == report


def test_sampled_negatives_and_workers_train(data: Path, tmp_path: Path) -> None:
    report = run(settings(data, tmp_path / "a", num_train_epochs=8, neg_video_num=10))
    assert value(report, "recall@10") > 0.6
    run(settings(data, tmp_path / "b", num_train_epochs=2))
    run(settings(data, tmp_path / "c", num_train_epochs=2, dataloader_num_workers=2))
    assert_equal(weights(tmp_path / "b"), weights(tmp_path / "c"))


def test_tiny_batches_keep_the_id_text_contrast_alive(data: Path, tmp_path: Path) -> None:
    """One sample a batch has fewer history entries than the contrast has negatives."""
    run(settings(data, tmp_path, num_train_epochs=1, per_device_train_batch_size=1))
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(last["train/id_text"])


def test_validation_does_not_move_with_global_random_state(data: Path, tmp_path: Path) -> None:
    """Stored candidates: the same checkpoint gets the same figures whatever was drawn before."""
    run(settings(data, tmp_path, num_train_epochs=1))
    figures = []
    for seed in (0, 1):
        np.random.seed(seed)
        torch.manual_seed(seed)
        figures.append(evaluate_checkpoint(str(tmp_path), str(data)))
    assert figures[0] == figures[1]


def test_recall_can_pick_the_best_with_fewer_than_ten_candidates(data: Path, tmp_path: Path) -> None:
    """CommRank rows have three candidates; a recall at 10 is defined all the same."""
    report = run(
        settings(
            data,
            tmp_path,
            finetune_task="CommRank",
            num_train_epochs=2,
            metric_for_best_model="eval_recall@10",
        )
    )
    assert value(report, "recall@10") == 1
    assert (tmp_path / "best" / "sr.safetensors").is_file()


def test_mixed_precision_of_the_launcher_is_obeyed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    seen = []
    merge = training.Trainer._micro_step

    def spy(self: training.Trainer, micro: object) -> object:
        self.model.sr.merge.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        return merge(self, micro)

    monkeypatch.setattr(training.Trainer, "_micro_step", spy)
    run(settings(data, tmp_path, num_train_epochs=1))
    assert torch.bfloat16 in seen
    assert (
        json.loads((tmp_path / "best" / "manifest.json").read_text())["identity"]["mixed precision"] == "bf16"
    )
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}


def test_divergence_is_told_and_the_state_before_kept(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="learning"):
        run(settings(data, tmp_path, learning_rate=1e30, num_train_epochs=3))


def test_more_candidates_than_stored_is_refused_before_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="max_candidate_num 200"):
        run(settings(data, tmp_path, max_candidate_num=200))
    assert not (tmp_path / "last").exists()


def test_changed_text_vectors_are_noticed(tmp_path: Path) -> None:
    source = write_planted(tmp_path / "data")
    run(settings(source, tmp_path / "run", num_train_epochs=1))
    table = np.load(source / "photo_full_embs.npy")
    np.save(source / "photo_full_embs.npy", table * 2)
    with pytest.raises(UserError, match="has changed since"):
        evaluate_checkpoint(str(tmp_path / "run"), str(source))
    with pytest.raises(UserError, match="video text vectors"):
        run(replace(settings(source, tmp_path / "run", num_train_epochs=1)))


def test_topics_divide_the_catalogue() -> None:
    """What the thresholds above rest on."""
    assert VIDEOS % TOPICS == 0
