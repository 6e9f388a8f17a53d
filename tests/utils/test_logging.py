"""Log lines, progress and metrics."""

import io
import json
import subprocess
import sys
import warnings

import pytest

from lsvcr.utils import logging as lsvcr_logging
from lsvcr.utils.logging import MetricsWriter, get_logger, progress, quiet_third_party


class Terminal(io.StringIO):
    """A stderr that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_information_comes_from_process_0_and_warnings_from_all(capsys, monkeypatch):
    logger = get_logger("lsvcr.some.module")
    logger.info("first %s", "line")
    monkeypatch.setenv("RANK", "1")
    logger.info("second line")
    logger.warning("third line")
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line.split(" ", 1)[1] for line in captured.err.splitlines()]
    assert lines == ["first line", "warning: third line"]


def test_loggers_of_foreign_names_are_put_under_ours(capsys):
    get_logger("train").info("hello")
    assert capsys.readouterr().err.endswith(" hello\n")
    get_logger("train").info("again")
    assert capsys.readouterr().err.count("again") == 1


def test_an_exception_is_logged_with_its_traceback(capsys):
    try:
        raise ValueError("odd")
    except ValueError:
        get_logger("lsvcr").exception("went wrong")
    assert "error: went wrong" in (text := capsys.readouterr().err) and "ValueError: odd" in text


def test_progress_walks_through_everything_and_is_silent_when_short(capsys):
    assert list(progress("abc", "letters")) == ["a", "b", "c"]
    assert list(progress(iter("abc"), "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_progress_tells_a_plain_line_now_and_then_without_a_terminal(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(lsvcr_logging.time, "monotonic", lambda: float(next(clock)))
    with progress(4, "stage one") as bar:
        for step in range(4):
            bar.advance(note=f"loss {step}")
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines[0].startswith("stage one: ") and "left" in lines[0] and "loss" in lines[0]
    assert lines[-1].startswith("stage one: 4/4") and "left" not in lines[-1]


def test_time_left_of_a_continued_run_counts_only_its_own_steps(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(lsvcr_logging.time, "monotonic", lambda: now[0])
    with progress(100, "steps") as bar:
        bar.start_at(80)
        now[0] = 40.0
        bar.advance(10)
    assert "steps: 90/100, 40 s so far, 40 s left" in capsys.readouterr().err


def test_progress_draws_a_bar_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(3, "embedding") as bar:
        bar.advance(2, note="fine")
    assert (
        "embedding" in terminal.getvalue() and "2/3" in terminal.getvalue() and "fine" in terminal.getvalue()
    )


def test_progress_is_silent_on_other_processes(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(lsvcr_logging, "PLAIN_SECONDS", 0.0)
    assert list(progress(range(3), "x")) == [0, 1, 2]
    assert terminal.getvalue() == ""


def test_a_number_alone_cannot_be_walked_through():
    with pytest.raises(TypeError, match="with"):
        list(progress(3, "x"))


def test_metrics_are_one_json_object_a_step(tmp_path):
    writer = MetricsWriter(tmp_path / "run")
    writer.log(1, {"loss": 0.5})
    writer.log(2, {"loss": float("nan"), "ndcg@10": 1})
    writer.close()
    assert rows(tmp_path / "run") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None, "ndcg@10": 1.0}]


def test_a_resumed_run_repeats_no_step(tmp_path):
    first = MetricsWriter(tmp_path)
    for step in range(1, 5):
        first.log(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 5, "lo')  # killed while it wrote
    MetricsWriter(tmp_path, resume_step=2).log(3, {"loss": 9.0})
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 9.0)]
    MetricsWriter(tmp_path).log(4, {"loss": 1.0})
    assert len(rows(tmp_path)) == 4
    MetricsWriter(tmp_path, resume_step=0)
    assert rows(tmp_path) == []


def test_only_process_0_writes_metrics(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    MetricsWriter(tmp_path / "run", "tensorboard").log(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_the_curves(tmp_path):
    writer = MetricsWriter(tmp_path, "tensorboard")
    writer.log(1, {"loss": 0.5})
    writer.close()
    assert list((tmp_path / "curves").glob("events.out.tfevents.*"))


def test_quiet_silences_others_but_not_us(monkeypatch):
    for name in ("TRANSFORMERS_VERBOSITY", "TRANSFORMERS_NO_ADVISORY_WARNINGS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "error")  # kept as they are, and put back afterwards
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_third_party()
        warnings.warn_explicit("theirs", FutureWarning, "f.py", 1, module="transformers.models")
        warnings.warn_explicit("ours", FutureWarning, "f.py", 1, module="lsvcr.models")
    assert [str(entry.message) for entry in caught] == ["ours"]


def test_logging_imports_no_torch():
    code = "import sys, lsvcr.utils.logging; assert not {'torch', 'rich', 'tensorboard'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
