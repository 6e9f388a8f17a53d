"""How far a run has come, how long it took and how fast it was."""

import statistics
from dataclasses import dataclass

from lsvcr.experiments.report_log import MetricsLog
from lsvcr.experiments.report_read import RunRecord
from lsvcr.schema import BASELINE, HLLM, STAGE_ONE

_SPEED_ENDINGS = ("_per_s", "_per_second")
_OPEN = "interrupted, or still running"


@dataclass(frozen=True)
class State:
    """Whether a run has come to its end, and a sentence that says how far it has come."""

    finished: bool
    says: str


def state_of(record: RunRecord) -> State:
    """How far a run has come."""
    if not record.manifest:
        return State(False, f"no checkpoint yet, the log reaches step {record.log.last_step:,}: {_OPEN}")
    if record.stage == BASELINE and "num_train_epochs" not in record.settings:
        return State(bool(record.tests), "fitted, not trained" if record.tests else f"not tested: {_OPEN}")
    if record.stage == HLLM:
        return _hllm(record)
    return _stage_one(record) if record.stage == STAGE_ONE else _stage_two(record)


def timings(record: RunRecord, train_samples: int | None) -> list[tuple[str, str]]:
    """Terms and values: steps, time and speed, as far as the run's files tell them.

    Args:
        record: the run.
        train_samples: training samples of a stage-two run's task; None where its dataset is not at hand.
    """
    step = _steps_done(record)
    found = [("optimiser steps", f"{step:,}")]
    progress = record.manifest.get("progress") or {}
    if "epoch" in progress:
        found.append(("epochs", str(progress["epoch"])))
    seconds = (
        record.seconds if record.stage in (STAGE_ONE, HLLM) else _epoch_seconds(record.log, train_samples)
    )
    if seconds is not None:
        found.append(("time in training steps (without validation)", duration(seconds)))
        if seconds > 0 and step:
            found.append(("seconds a step", f"{seconds / step:.3g}"))
    batch = record.manifest.get("global_batch")
    if batch:
        found.append(("samples a step", f"{batch:,}"))
        if seconds:
            found.append(("samples a second", f"{batch * step / seconds:.3g}"))
    for name, values in record.log.series.items():
        finite = [value for value in values.values() if value is not None]
        if name.endswith(_SPEED_ENDINGS) and finite:
            median = statistics.median(finite)
            found.append(
                (f"{name}, median of the log lines", f"{median:,.0f}" if median >= 10 else f"{median:.3g}")
            )
    if "processes" in record.manifest:
        found.append(("processes", str(record.manifest["processes"])))
    if "trained_parameters" in record.manifest:
        found.append(("parameters that trained", f"{record.manifest['trained_parameters']:,}"))
    return found


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _stage_one(record: RunRecord) -> State:
    if "steps" not in record.manifest:
        return State(True, "not trained here: a converted checkpoint" if _converted(record) else "unknown")
    step, steps = _steps_done(record), record.manifest["steps"]
    if step >= steps:
        return State(True, f"finished: {step:,} of {steps:,} steps")
    said = f"step {step:,} of {steps:,}: {_OPEN}"
    beyond = record.log.last_step
    if beyond > step:
        said += f" (the log reaches step {beyond:,}; it would go on from the checkpoint of step {step:,})"
    return State(False, said)


def _hllm(record: RunRecord) -> State:
    """Counted in steps as stage one, tested at its end as stage two."""
    said = _stage_one(record)
    step, steps = _steps_done(record), record.manifest["steps"]
    if record.tests:
        return State(
            True, said.says if said.finished else f"finished: {step:,} of {steps:,} steps, stopped early"
        )
    return State(False, f"trained for {step:,} steps, but not tested: {_OPEN}") if said.finished else said


def _stage_two(record: RunRecord) -> State:
    progress = record.manifest.get("progress") or {}
    epoch, step = progress.get("epoch", 0), progress.get("step", 0)
    most = record.settings.get("num_train_epochs", epoch)
    best = (
        f"the best epoch is {progress['best_epoch']}" if progress.get("best_epoch") else "no best epoch yet"
    )
    if record.tests:
        early = ", stopped early" if epoch < most else ""
        return State(True, f"finished: {epoch} of at most {most} epochs{early}, {step:,} steps; {best}")
    if epoch >= most or progress.get("without_gain", 0) >= record.settings.get("patience", epoch + 1):
        return State(False, f"trained for {epoch} epochs, {step:,} steps, but not tested: {_OPEN}; {best}")
    total = f" of at most {step * most // epoch:,}" if epoch else ""
    return State(False, f"epoch {epoch} of at most {most}, step {step:,}{total}: {_OPEN}; {best}")


def _converted(record: RunRecord) -> bool:
    return bool(record.manifest.get("converted_from"))


def _steps_done(record: RunRecord) -> int:
    """Steps that a checkpoint keeps; of a run whose last/ was removed, those that its log tells."""
    if not record.manifest:
        return record.log.last_step
    progress = record.manifest.get("progress") or {}
    kept = int(record.manifest.get("step", progress.get("step", 0)))
    return kept if record.has_last else max(kept, record.log.last_step)


def _epoch_seconds(log: MetricsLog, samples: int | None) -> float | None:
    """Seconds of all logged epochs of stage two, from their speed."""
    speeds = log.series.get("train/samples_per_second")
    if samples is None or not speeds or not all(speeds.values()):
        return None
    return sum(samples / speed for speed in speeds.values() if speed)
