"""What a run folder of either stage, or of `lsvcr train`, holds, read for its report; nothing here needs torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsvcr.data.vectors import described
from lsvcr.experiments.report_log import MetricsLog, read_log
from lsvcr.schema import (
    BASELINE,
    BEST_DIR,
    CLICKS,
    HLLM,
    LAST_DIR,
    MANIFEST_FILE,
    METRICS_FILE,
    METRICS_LOG_FILE,
    STAGE_ONE,
    STAGE_TWO,
    TRAINER_FILE,
)
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import read_json

_PARTS = ("settings", "versions", "metrics", "progress", "parent", "texts", "converted_from")
"""Entries of a manifest that are mappings, where they are there at all."""


@dataclass(frozen=True)
class TestPart:
    """Test figures of one protocol, over all rows or a slice of them.

    Attributes:
        protocol, part: their names; part is `all rows` for the whole.
        rows: how many rows the means are over.
        figures: metric -> value and ends of its 95 % interval; None where there were no rows.
    """

    protocol: str
    part: str
    rows: int
    figures: Mapping[str, tuple[float | None, tuple[float, float] | None]]


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it.

    Attributes:
        folder: the run's.
        stage: `stage-one`, `stage-two`, `baseline`, `clicks`, or empty before the first checkpoint.
        manifest: of last/, else of best/; empty before the first checkpoint.
        best: manifest of best/, or empty.
        log: its metrics log.
        tests: test figures of a finished stage-two run.
        seconds: stage one: seconds of training up to last/, None where it is gone.
        written: when the newest of its files was written, in seconds since 1970.
    """

    folder: Path
    stage: str
    manifest: Mapping[str, Any]
    best: Mapping[str, Any]
    log: MetricsLog
    tests: tuple[TestPart, ...]
    seconds: float | None
    written: float

    @property
    def settings(self) -> Mapping[str, Any]:
        """As the manifest has them."""
        return self.manifest.get("settings") or {}

    @property
    def has_last(self) -> bool:
        """Whether `manifest` is that of last/."""
        return (self.folder / LAST_DIR / MANIFEST_FILE).is_file()


def read_run(folder: str | Path) -> RunRecord:
    """Read a run folder, whatever state the run is in.

    Raises:
        UserError: it is none, or a file in it is damaged; the message names it.
    """
    run = Path(folder)
    remedy = "give the output folder of a train.py or finetune.py run"
    if not run.is_dir():
        raise UserError(
            f"{run} is not a run folder: it {'is a file' if run.exists() else 'does not exist'}; {remedy}"
        )
    if (run / MANIFEST_FILE).is_file() and run.resolve().name in (BEST_DIR, LAST_DIR):
        raise UserError(
            f"{run} is one checkpoint of a run; give the run's own folder, {run.resolve().parent}"
        )
    best, last = (_manifest(run / name) for name in (BEST_DIR, LAST_DIR))
    manifest = last or best
    files = [run / METRICS_LOG_FILE, run / METRICS_FILE]
    if not manifest and not files[0].is_file():
        raise UserError(
            f"{run} is not a run folder: it has neither checkpoints nor {METRICS_LOG_FILE}; {remedy}"
        )
    files += [run / name / MANIFEST_FILE for name in (BEST_DIR, LAST_DIR)]
    trainer = run / LAST_DIR / TRAINER_FILE
    return RunRecord(
        folder=run,
        stage=manifest.get("kind", ""),
        manifest=manifest,
        best=best,
        log=read_log(files[0]),
        tests=_tests(files[1]),
        seconds=_seconds(trainer) if trainer.is_file() else None,
        written=max(path.stat().st_mtime for path in files if path.is_file()),
    )


def llm_of(record: RunRecord) -> str:
    """The LLM of a run: its own, or the one that made the text vectors of stage two; `unknown` if no file tells."""
    own = record.settings.get("model_name_or_path")
    if own:
        return f"{own}, first {layers} layers" if (layers := record.settings.get("llm_layers")) else str(own)
    if record.stage in (STAGE_TWO, BASELINE, CLICKS) and record.manifest.get("texts") is None:
        return "none (no text vectors)"
    videos = (record.manifest.get("texts") or {}).get("videos") or {}
    try:
        made = described(Path(str(videos.get("path", ""))))
    except UserError:
        return "unknown"
    if made is None or made["sha256"] != videos.get("sha256") or not made.get("llm"):
        return "unknown"  # no description, or that of other vectors
    return f"{made['llm']} (through its text vectors)"


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint of a run; empty where there is none."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return {}
    manifest = read_json(path)
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    if kind not in (STAGE_ONE, STAGE_TWO, BASELINE, CLICKS, HLLM):
        raise UserError(
            f"{path} is not the manifest of a checkpoint of a run; give a run folder that train.py, finetune.py, "
            "`lsvcr train`, `lsvcr hllm` or `lsvcr clicks` wrote"
        )
    odd = [name for name in _PARTS if not isinstance(manifest.get(name) or {}, dict)]
    if odd:
        raise UserError(
            f"{path}: {', '.join(odd)} should be JSON objects; the file was changed, train the run again"
        )
    return dict(manifest)


def _seconds(path: Path) -> float | None:
    standing = read_json(path)
    seconds = standing.get("seconds") if isinstance(standing, dict) else None
    return float(seconds) if isinstance(seconds, (int, float)) else None


def _tests(path: Path) -> tuple[TestPart, ...]:
    """Protocols and slices of `metrics.json`, in its order; none where the file is not there."""
    if not path.is_file():
        return ()
    try:
        parts = []
        for protocol, content in read_json(path)["protocols"].items():
            parts.append(_test_part(protocol, "all rows", content))
            parts += [_test_part(protocol, name, part) for name, part in content.get("slices", {}).items()]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{path} is not what finetune.py writes: evaluate the run again, or remove the file"
        ) from None
    return tuple(parts)


def _test_part(protocol: str, name: str, content: Mapping[str, Any]) -> TestPart:
    figures: dict[str, tuple[float | None, tuple[float, float] | None]] = {}
    for metric, entry in content["metrics"].items():
        value, interval = entry["value"], entry["interval"]
        low_high = None if interval is None else (float(interval[0]), float(interval[1]))
        figures[metric] = (None if value is None else float(value), low_high)
    return TestPart(protocol, name, int(content["rows"]), figures)
