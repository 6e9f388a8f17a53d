"""Reports of runs that were really trained, read by a parser and by a browser."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from lsvcr.data.store import open_dataset
from tests.experiments import browser
from tests.experiments.report_folders import Page, report
from tests.training.align_runs import Stopped, run_processes, stop_before
from tests.training.align_runs import settings as align_settings
from tests.training.rank_runs import settings as rank_settings

WIDTHS = (320, 375, 1280)
"""Small phone, phone, desktop."""


def stage_one_runs(folder: Path, data: str) -> dict[str, Any]:
    """A finished run with its text vectors, and one that dies after step 3 of 4; in a process of its own."""
    from lsvcr.settings import EmbedSettings
    from lsvcr.training.align import align
    from lsvcr.training.embed import embed

    own = {"max_steps": 4, "logging_steps": 1}
    align(align_settings(data, folder / "aligned", **own))
    embed(EmbedSettings(data_path=data, checkpoint=str(folder / "aligned")))
    undo = stop_before(3)
    with suppress(Stopped):
        align(align_settings(data, folder / "killed", **own))
    undo()
    return {}


@pytest.fixture(scope="module")
def runs(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs `aligned`, `killed` and, from `aligned` on, `tuned`; and of their `data`."""
    from lsvcr.training.rank import run

    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(tiny_data, folder / "data")
    run_processes(stage_one_runs, 1, folder, data=str(folder / "data"))
    torch.set_num_threads(1)
    shape = {
        "text_width": 16,
        "layers": 2,
        "pretrain_checkpoint": str(folder / "aligned"),
        "max_position": 50,
    }
    run(rank_settings(folder / "data", folder / "tuned", **shape))
    # Accelerate keeps device and precision for the process: the next test that trains starts anew.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return folder


def logged(run: Path) -> set[str]:
    """Every name in a run's metrics log, without its prefix."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {name.rpartition("/")[2] for line in lines for name in line} - {"step"}


def shown(page: Page) -> set[str]:
    """Names that the page's tables of values have as columns."""
    tables = page.source.split("<summary>values</summary>")[1:]
    return {cell.text for part in tables for cell in Page(part[: part.index("</details>")]).all("th")} - {
        "step"
    }


@pytest.mark.parametrize("name", ["aligned", "killed", "tuned"])
def test_every_logged_name_has_its_curve_and_its_values(runs, name):
    page = report(runs / name)
    names = logged(runs / name)
    assert names and names <= shown(page)
    assert len(page.all("path", "curve")) >= len(names)
    assert all(path.attributes["d"].startswith("M") for path in page.all("path", "curve"))


def test_a_finished_stage_one(runs):
    page = report(runs / "aligned")
    facts, dataset = page.facts(), open_dataset(runs / "data")
    assert page.all("p", "state")[0].text == "finished: 4 of 4 steps" and page.warnings() == []
    assert facts["LLM"] == "tiny-random" and facts["dataset"] == f"data, hash {dataset.data_hash[:12]}"
    assert "deepspeed" in facts["versions"] and float(facts["seconds a step"]) > 0
    assert {"loss", "lm", "learning_rate", "grad_norm", "tokens_per_s", "retrieval@1_chance"} <= shown(page)
    assert "best/ (step" in page.text and "last/ (step 4)" in page.text
    manifest = json.loads((runs / "aligned" / "last" / "manifest.json").read_text())
    value = manifest["metrics"]["rec_ndcg@10"]
    assert f"{value:.4g}" in [cell.text for cell in page.all("td")]


def test_a_killed_stage_one(runs):
    said = report(runs / "killed").all("p", "state")[0].text
    assert said.startswith("step 2 of 4: interrupted") and "the log reaches step 3" in said


def test_a_finished_stage_two(runs):
    page = report(runs / "tuned")
    metrics = json.loads((runs / "tuned" / "metrics.json").read_text())
    full = metrics["protocols"]["full"]["metrics"]["ndcg@10"]
    low, high = full["interval"]
    assert f"{full['value']:.4f} ({low:.4f} to {high:.4f})" in [cell.text for cell in page.all("td")]
    facts = page.facts()
    assert facts["task"] == "Rec" and facts["LLM"] == "tiny-random (through its text vectors)"
    assert facts["stage-one checkpoint"] == str(runs / "aligned" / "best")
    assert "time in training steps (without validation)" in facts and page.warnings() == []


def test_data_that_changed_since_is_warned_of(runs, tmp_path):
    other = tmp_path / "data"
    shutil.copytree(runs / "data", other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "data_hash": "0" * 64}))
    warnings = report(runs / "aligned", data=str(other), out=str(tmp_path / "x.html")).warnings()
    assert len(warnings) == 2 and all("not what the run was trained on" in text for text in warnings)


@pytest.mark.parametrize("name", ["aligned", "tuned"])
def test_a_browser_draws_every_curve_and_asks_for_nothing(runs, name, tmp_path):
    browser.find()
    page = report(runs / name, out=str(tmp_path / "page.html"))
    seen = browser.dump(tmp_path / "page.html", tmp_path)
    assert seen.count('class="curve ') == page.source.count('class="curve ') > 0
    for found in browser.measure(page.source, WIDTHS, tmp_path):
        assert found["scroll_width"] <= found["width"], f"scrolls sideways at {found['width']}"
        assert len(found["lengths"]) == len(page.all("path", "curve")) and min(found["lengths"]) > 0
        assert found["pictures"] and max(found["pictures"]) < found["width"]
        assert min(found["pictures"]) > 200
        assert found["asked_for"] == [] and found["scripts"] == 0


def test_both_colour_schemes_can_be_read(runs, tmp_path):
    browser.find()
    source = report(runs / "tuned", out=str(tmp_path / "page.html")).source
    pages = {}
    for scheme in (browser.LIGHT, browser.DARK):
        (found,) = browser.measure(source, (375,), tmp_path, scheme)
        assert browser.contrast(found["text"], found["page"]) >= 7
        assert min(browser.contrast(found["soft"], found[where]) for where in ("page", "card")) >= 4.5
        assert min(browser.contrast(stroke, found["card"]) for stroke in found["strokes"]) >= 3
        pages[scheme] = found["page"]
    assert pages == {browser.LIGHT: "rgb(255, 255, 255)", browser.DARK: "rgb(13, 17, 23)"}


def test_the_measuring_page_sees_what_it_looks_for(tmp_path):
    browser.find()
    bad = '<body><div style="width: 500px">x</div><img src="http://outside.invalid/x.png"><script></script></body>'
    (found,) = browser.measure(bad, (375,), tmp_path)
    assert found["scroll_width"] > found["width"] == 375
    assert found["asked_for"] == ["http://outside.invalid/x.png"] and found["scripts"] == 1
