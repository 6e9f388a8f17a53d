"""What is instant stays instant."""

import resource
import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "transformers",
    "deepspeed",
    "accelerate",
    "peft",
    "polars",
    "pyarrow",
    "onnxruntime",
    "rich",
}


def loaded_by(code: str) -> set[str]:
    """Top-level packages in memory after `code`, in a fresh interpreter."""
    show = "import sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import lsvcr, lsvcr.schema, lsvcr.settings",
        "import lsvcr.cli; lsvcr.cli.main([])",
        "import lsvcr.cli; lsvcr.cli.main(['embed', '--misspelt'])",
        "import runpy; runpy.run_path('train.py')",
        "import runpy; runpy.run_path('finetune.py')",
    ],
)
def test_loads_nothing_heavy(code, monkeypatch):
    from tests.guards.source import ROOT

    monkeypatch.chdir(ROOT)
    assert not HEAVY & loaded_by(code)


@pytest.mark.parametrize("words", [[], ["--help"], ["prepare", "--help"], ["embed", "--help"]])
def test_help_is_there_within_a_second(words):
    # Processor time: other work on the machine is not what is measured.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "lsvcr", *words], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_serving_loads_no_torch():
    from tests.guards.source import PACKAGE

    if not (PACKAGE / "serving").is_dir() or not list((PACKAGE / "serving").glob("*.py")):
        return  # nothing to serve with yet
    assert not {"torch", "transformers"} & loaded_by("import lsvcr.serving")


def test_the_process_above_those_that_serve_stays_small():
    loaded = loaded_by("import lsvcr.cli, lsvcr.serving.http.processes")
    assert not (HEAVY | {"numpy", "faiss", "fastapi", "uvicorn", "prometheus_client"}) & loaded
