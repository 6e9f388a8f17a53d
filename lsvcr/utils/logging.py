"""What a run tells: log lines and a progress bar for the person, metrics for the machine.

Information comes from the first process only; warnings from all. Everything goes to stderr, so that stdout
holds results alone.
"""

import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar, overload

from lsvcr.schema import METRICS_LOG_FILE

T = TypeVar("T")

_ROOT = "lsvcr"
PLAIN_SECONDS = 30.0
"""Seconds between progress lines where there is no terminal to draw a bar on."""


def get_logger(name: str) -> logging.Logger:
    """The logger of a module (pass `__name__`); its lines go to stderr, INFO from process 0 only."""
    root = logging.getLogger(_ROOT)
    if not any(isinstance(handler, _StderrHandler) for handler in root.handlers):
        handler = _StderrHandler()
        handler.setFormatter(_Formatter())
        handler.addFilter(_speaks)
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        root.propagate = False
    return logging.getLogger(name if name == _ROOT or name.startswith(_ROOT + ".") else f"{_ROOT}.{name}")


def quiet_third_party() -> None:
    """Silence what other packages say in every run and no user can act on. Call before importing them.

    Errors still come through, and so do the warnings of our own code.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("transformers", "accelerate", "peft", "torch.distributed", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # DeepSpeed sets its logger's level when it is imported, so the level set here would not last; a filter does.
    logging.getLogger("DeepSpeed").addFilter(_is_error)
    for module in ("transformers", "accelerate", "peft", "deepspeed", "torch", "gguf", "onnxscript"):
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?$")


@overload
def progress(source: int, description: str, total: int | None = None) -> "Progress[None]": ...


@overload
def progress(source: Iterable[T], description: str, total: int | None = None) -> "Progress[T]": ...


def progress(source: Iterable[Any] | int, description: str, total: int | None = None) -> "Progress[Any]":
    """A progress bar with the time that remains; silent on all processes but the first.

    Two uses: `for item in progress(items, "reading"):`, and for work that counts by itself
    `with progress(800, "stage one") as bar: bar.advance(1, note="loss 1.23")`.

    Args:
        source: what to walk through, or the number of steps.
        description: a few words in front of the bar.
        total: steps when `source` has no length.
    """
    if isinstance(source, int):
        return Progress(None, description, source)
    if total is None and isinstance(source, Sized):
        total = len(source)
    return Progress(source, description, total)


class Progress(Generic[T]):
    """What `progress` returns: a bar on a terminal, else a plain line every `PLAIN_SECONDS`."""

    def __init__(self, items: Iterable[T] | None, description: str, total: int | None) -> None:
        self._items, self._description, self._total = items, description, total
        self._done, self._note = 0, ""
        self._started = self._told = time.monotonic()
        self._first = self._done
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress[T]":
        self._started = self._told = time.monotonic()
        if _is_main() and sys.stderr.isatty():
            self._open_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif kind is None and self._told > self._started:
            self._tell()  # a run that was long enough to be told about also says that it has ended

    def __iter__(self) -> Iterator[T]:
        if self._items is None:
            raise TypeError("progress(number, ...) has nothing to walk through: use it in a `with` block")
        with self:
            for item in self._items:
                yield item
                self.advance()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count `steps` more as done and show `note` (a few words, such as the loss) from now on."""
        self._done += steps
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, note=self._note)
        elif time.monotonic() - self._told >= PLAIN_SECONDS:
            self._tell()

    def start_at(self, done: int) -> None:
        """Begin at `done` steps: an interrupted run goes on. The time that remains counts from here."""
        self._done = self._first = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            refresh_per_second=2,
        )
        self._task = self._bar.add_task(self._description, total=self._total, completed=self._done, note="")
        self._bar.start()

    def _tell(self) -> None:
        self._told = time.monotonic()
        done = f"{self._done}" if self._total is None else f"{self._done}/{self._total}"
        seconds, steps = self._told - self._started, self._done - self._first
        parts = [f"{self._description}: {done}", f"{duration(seconds)} so far"]
        if self._total is not None and steps > 0 and self._done < self._total:
            parts.append(f"{duration(seconds / steps * (self._total - self._done))} left")
        if self._note:
            parts.append(self._note)
        get_logger(_ROOT).info(", ".join(parts))


class MetricsWriter:
    """Named numbers of a run, by step: `metrics.jsonl` and, if asked for, TensorBoard curves.

    Args:
        folder: the run's folder.
        report_to: "tensorboard" or "none".
        resume_step: None adds to what is there; a step drops what an interrupted run logged after it, so
            that the steps it repeats do not appear twice (0 starts afresh).
    """

    def __init__(self, folder: str | Path, report_to: str = "none", resume_step: int | None = None) -> None:
        self.path = Path(folder) / METRICS_LOG_FILE
        self._curves: Any = None
        if not _is_main():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _keep_lines(self.path, resume_step)
        if report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            purge = None if resume_step is None else resume_step + 1
            self._curves = SummaryWriter(log_dir=str(self.path.parent / "curves"), purge_step=purge)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write `values` of `step`; a value that is not finite becomes null in the file."""
        if not _is_main():
            return
        numbers = {name: float(value) for name, value in values.items()}
        row = {
            "step": step,
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
        }
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        if self._curves is not None:
            for name, value in numbers.items():
                self._curves.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the curves."""
        if self._curves is not None:
            self._curves.close()
            self._curves = None


class _StderrHandler(logging.StreamHandler[Any]):
    """Writes to whatever `sys.stderr` is now: a progress bar puts itself there to stay below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Formatter(logging.Formatter):
    """Time and text; the level only where it is more than information."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        text = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {level}{record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _speaks(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or _is_main()


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _is_main() -> bool:
    """The launcher's environment, not torch, tells the process number: logging must not import torch."""
    return os.environ.get("RANK", "0") == "0"


def duration(seconds: float) -> str:
    """Seconds as a person says them: `40 s`, `5 min`, `3 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _keep_lines(path: Path, last_step: int | None) -> None:
    """Drop lines after `last_step`, and a last line that a killed process left unfinished."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            step = json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
        if last_step is None or step <= last_step:
            kept.append(line + "\n")
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
