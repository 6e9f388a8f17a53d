"""The report of a run: what it says, what it warns of, what it refuses. Run folders are written by hand here."""

import json
import os
import re
from pathlib import Path

import pytest

from lsvcr import cli
from lsvcr.data.store import open_dataset
from lsvcr.utils.errors import UserError
from tests.experiments.report_folders import (
    HASH,
    Page,
    report,
    stage_one,
    stage_two,
    write_log,
    write_manifest,
    write_tests,
)

LOG = [
    {"step": 2, "train/loss": 9.5, "train/tokens_per_s": 100.0},
    {"step": 4, "train/loss": 8.5, "train/tokens_per_s": 300.0},
    {"step": 4, "val/retrieval@1": 0.25, "val/retrieval@1_chance": 0.125},
]


def write_aligned(run: Path, step: int = 8, **changes) -> Path:
    """A stage-one run after `step` of 8 steps."""
    write_log(run, LOG)
    write_manifest(run, "best", stage_one(4, **changes))
    write_manifest(run, "last", stage_one(step, **changes))
    (run / "last" / "trainer.json").write_text(json.dumps({"step": step, "seconds": 16.0}))
    return run


def write_tuned(run: Path, **progress) -> Path:
    """A stage-two run after 3 of at most 50 epochs."""
    manifest = stage_two()
    manifest["progress"] |= progress
    write_log(run, [{"step": 30, "train/loss": 3.5, "val/recall@1": 0.1, "val/recall@10": 0.4}])
    for name in ("best", "last"):
        write_manifest(run, name, manifest)
    return run


def state(page: Page) -> tuple[str, bool]:
    """What the page says of the run's state, and whether it looks finished."""
    (element,) = page.all("p", "state")
    return element.text, "open" not in element.attributes["class"].split()


def test_the_head_says_what_run_it_is(tmp_path):
    run = write_aligned(tmp_path / "my-run", llm_layers=6, tasks="Rec")
    os.utime(run / "last" / "manifest.json", (2e9, 2e9))
    page = report(run)
    assert page.all("h1")[0].text == "my-run" and page.all("title")[0].text == "my-run: stage one"
    facts = page.facts()
    assert facts["stage"].startswith("stage one")
    assert facts["task"] == "Rec" and facts["LLM"] == "tiny-random, first 6 layers"
    assert facts["dataset"] == f"demo-data, hash {HASH[:12]}" and facts["seed"] == "2024"
    assert facts["versions"] == "lsvcr 0.1.0, torch 2.9.9"
    assert facts["last written (date of its files)"] == "2033-05-18 03:33 UTC"
    assert state(page) == ("finished: 8 of 8 steps", True)


def test_both_tasks_of_stage_one_are_named(tmp_path):
    assert report(write_aligned(tmp_path)).facts()["task"] == "Rec and CommRank"


def test_an_interrupted_run_says_where_it_stands(tmp_path):
    run = write_aligned(tmp_path, step=3)
    said, finished = state(report(run))
    assert said.startswith("step 3 of 8: interrupted, or still running") and not finished
    assert "the log reaches step 4; it would go on from the checkpoint of step 3" in said


def test_a_run_without_last_is_finished_when_its_log_is(tmp_path):
    write_manifest(tmp_path, "best", stage_one(4))
    write_log(tmp_path, [{"step": 8, "train/loss": 1.0}])
    assert state(report(tmp_path)) == ("finished: 8 of 8 steps", True)
    write_log(tmp_path, [{"step": 6, "train/loss": 1.0}])
    assert state(report(tmp_path))[0].startswith("step 6 of 8: interrupted")


def test_a_run_before_its_first_checkpoint_shows_its_curves(tmp_path):
    write_log(tmp_path, LOG)
    page = report(tmp_path)
    assert state(page) == ("no checkpoint yet, the log reaches step 4: interrupted, or still running", False)
    assert page.figure("loss") and "No checkpoint tells the settings yet." in page.text
    assert any("--data names one" in text for text in page.warnings())


def test_a_converted_checkpoint_was_not_trained_here(tmp_path):
    manifest = {"kind": "stage-one", "settings": {}, "converted_from": {"file": "old.bin", "sha256": HASH}}
    write_manifest(tmp_path, "best", manifest)
    page = report(tmp_path)
    assert state(page) == ("not trained here: a converted checkpoint", True)
    assert page.facts()["converted from"] == "old.bin" and "No metrics yet" in page.text


@pytest.mark.parametrize(
    "progress, tested, says, finished",
    [
        ({}, False, "epoch 3 of at most 50, step 30 of at most 500: interrupted", False),
        ({}, True, "finished: 3 of at most 50 epochs, stopped early, 30 steps; the best epoch is 2", True),
        ({"epoch": 50, "step": 500}, True, "finished: 50 of at most 50 epochs, 500 steps", True),
        ({"epoch": 50, "step": 500}, False, "trained for 50 epochs, 500 steps, but not tested", False),
        ({"without_gain": 5}, False, "trained for 3 epochs, 30 steps, but not tested", False),
        ({"best_epoch": 0}, False, "no best epoch yet", False),
    ],
)
def test_states_of_stage_two(tmp_path, progress, tested, says, finished):
    run = write_tuned(tmp_path, **progress)
    if tested:
        write_tests(run)
    said, good = state(report(run))
    assert says in said and good is finished


def test_stage_two_names_its_task_and_where_it_began(tmp_path):
    facts = report(write_tuned(tmp_path)).facts()
    assert facts["task"] == "CommRank" and facts["stage-one checkpoint"] == "ckpt/somewhere/best"
    assert facts["LLM"] == "none (no text vectors)"


def test_the_llm_of_stage_two_is_told_by_its_vectors_while_they_are_the_same(tmp_path):
    texts, run = tmp_path / "texts", tmp_path / "run"
    texts.mkdir()
    entry = {"data_hash": HASH, "sha256": "1", "llm": "some-llm"}
    (texts / "embeddings.json").write_text(json.dumps({"files": {"photo_embs.npy": entry}}))
    for sha256, llm in (("1", "some-llm (through its text vectors)"), ("2", "unknown")):
        videos = {"path": str(texts / "photo_embs.npy"), "sha256": sha256}
        write_manifest(run, "best", stage_two() | {"texts": {"videos": videos}})
        assert report(run).facts()["LLM"] == llm


def test_timings_of_stage_one(tmp_path):
    facts = report(write_aligned(tmp_path)).facts()
    assert facts["optimiser steps"] == "8" and facts["time in training steps (without validation)"] == "16 s"
    assert facts["seconds a step"] == "2" and facts["samples a second"] == "2"  # 8 steps of 4 samples in 16 s
    assert facts["train/tokens_per_s, median of the log lines"] == "200"
    assert facts["parameters that trained"] == "27,737" and facts["processes"] == "2"


def test_time_of_stage_two_follows_from_its_speed_and_its_data(tmp_path, tiny_data):
    dataset = open_dataset(tiny_data)
    samples = len(dataset.samples("rec", "train"))
    manifest = stage_two() | {"task": "rec", "data_hash": dataset.data_hash}
    manifest["settings"]["data_path"] = str(tiny_data)
    write_manifest(tmp_path, "last", manifest)
    speeds = (samples / 60.0, samples / 65.0)  # epochs of 60 and 65 seconds
    lines = [{"step": 5 * (i + 1), "train/samples_per_second": speed} for i, speed in enumerate(speeds)]
    write_log(tmp_path, lines)
    term = "time in training steps (without validation)"
    assert report(tmp_path).facts()[term] == "2 min 05 s"
    write_manifest(tmp_path, "last", manifest | {"data_hash": HASH})
    assert term not in report(tmp_path).facts()  # other data: how many samples it had is not known


def test_test_figures_stand_with_their_intervals(tmp_path):
    run = write_tuned(tmp_path)
    write_tests(run)
    page = report(run)
    assert "0.5000 (0.2500 to 0.7500)" in [cell.text for cell in page.all("td")]
    heads = [cell.text for cell in page.all("th")]
    assert "all rows (40)" in heads and "cold (0)" in heads
    assert [title.text for title in page.all("h2")][0] == "Test figures"


def test_checkpoints_stand_side_by_side(tmp_path):
    page = report(write_aligned(tmp_path))
    heads = [cell.text for cell in page.all("th")]
    assert "best/ (step 4)" in heads and "last/ (step 8)" in heads and "selection" in heads


def test_settings_that_differ_come_first_and_then_all(tmp_path):
    page = report(write_aligned(tmp_path, hidden=16))
    captions = [caption.text for caption in page.all("caption")]
    assert "Other than the defaults" in captions
    start = page.source.index("Other than the defaults")
    changed = page.source[start : page.source.index("<details>", start)]
    assert re.findall(r'scope="row">(.*?)</th>', changed.replace("<wbr>", "")) == [
        "hidden",
        "model_name_or_path",
        "data_path",
    ]
    assert ">16<" in changed and ">64<" in changed
    everything = [element for element in page.all("details") if element.text.startswith("all ")]
    assert everything[0].text.startswith(f"all {len(stage_one()['settings'])} settings")
    assert "latest videos of the video history" in everything[0].text


def test_a_setting_of_another_version_is_shown(tmp_path):
    manifest = stage_one()
    manifest["settings"]["long_gone"] = 5
    write_manifest(tmp_path, "best", manifest)
    assert "not in this version" in report(tmp_path).text


def test_the_data_card_describes_the_dataset(tmp_path, tiny_data):
    dataset = open_dataset(tiny_data)
    manifest = stage_one(8, data_path=str(tiny_data)) | {"data_hash": dataset.data_hash}
    write_manifest(tmp_path, "last", manifest)
    page = report(tmp_path)
    assert page.warnings() == []
    facts = page.facts()
    assert facts["users"] == str(dataset.n_users) and facts["comments"] == str(dataset.n_comments)
    assert facts["videos"].startswith(f"{dataset.n_videos} (")
    assert facts["hash"] == dataset.data_hash[:12] and facts["split"] == "leave-last"
    cells = [cell.text for cell in page.all("td")]
    for task in ("rec", "comm_rank"):
        for split in ("train", "val", "test"):
            assert str(len(dataset.samples(task, split))) in cells


def test_other_data_and_lost_data_are_warned_of_where_a_reader_begins(tmp_path, tiny_data):
    run = write_aligned(tmp_path)
    gone = report(run)
    assert any("nowhere/demo-data does not exist" in text and "--data" in text for text in gone.warnings())
    other = report(run, data=str(tiny_data))
    own = open_dataset(tiny_data).data_hash[:12]
    assert any(HASH[:12] in text and own in text for text in other.warnings())
    assert other.facts()["users"] == "24"
    for page in (gone, other):
        assert page.source.index('class="warning"') < page.source.index("<h2>Curves")


def test_a_damaged_dataset_is_warned_of(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text("{")
    page = report(write_aligned(tmp_path / "run"), data=str(tmp_path / "data"))
    assert any("line 1: not valid JSON" in text for text in page.warnings())


def test_without_metrics_the_page_says_so(tmp_path):
    write_manifest(tmp_path, "last", stage_one(0))
    page = report(tmp_path)
    assert "No metrics yet: metrics.jsonl holds none." in page.text and page.all("svg") == []
    (tmp_path / "metrics.jsonl").write_text("")
    assert "No metrics yet" in report(tmp_path).text


def test_a_last_line_cut_off_is_no_error_and_a_broken_one_is(tmp_path):
    run = write_aligned(tmp_path)
    log = run / "metrics.jsonl"
    with log.open("a") as stream:
        stream.write('{"step": 6, "train/lo')
    page = report(run)
    assert any("the run was killed while it wrote" in text for text in page.warnings())
    assert len(page.figure("loss")) > 1
    with log.open("a") as stream:
        stream.write("\n")
    with pytest.raises(UserError, match=rf"{log}, line 4: not a line of a metrics log"):
        report(run)


@pytest.mark.parametrize(
    "line",
    [
        "[1]", "7", '{"train/loss": 1}', '{"step": "2"}', '{"step": -1}', '{"step": 1.5}', '{"step": true}',
        '{"step": 1, "a": "text"}', '{"step": 1, "a": true}', '{"step": 1, "a": [1]}', "", "\x00", "[" * 100_000,
    ],
)  # fmt: skip
def test_a_line_of_another_kind_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1}\n' + line + '\n{"step": 2, "a": 1}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: not a line of a metrics log"):
        report(tmp_path)


def test_values_that_are_not_finite_are_warned_of(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "train/a": 1, "b": NaN}\n{"step": 2, "train/a": null, "b": 1e999}\n{"step": 3, "train/a": 3}\n'
    )
    page = report(tmp_path)
    assert any("Not finite at some step: train/a, b." in text for text in page.warnings())
    assert "No finite value." in page.text


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda run: None, "does not exist; give the output folder of a train.py or finetune.py run"),
        (lambda run: run.write_text("x"), "it is a file"),
        (lambda run: run.mkdir(), "it has neither checkpoints nor metrics.jsonl"),
        (lambda run: write_manifest(run, "best", {"kind": "dataset"}), "not the manifest of a checkpoint"),
        (
            lambda run: write_manifest(run, "best", stage_one() | {"settings": 3}),
            "settings should be JSON objects",
        ),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, make, says):
    make(tmp_path / "run")
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "run"))) as refused:
        report(tmp_path / "run")
    assert says in str(refused.value) and not (tmp_path / "run" / "report.html").exists()


def test_one_checkpoint_is_not_taken_for_the_run(tmp_path):
    run = write_aligned(tmp_path / "run")
    with pytest.raises(UserError, match=rf"give the run's own folder, {run}$"):
        report(run / "best")


def test_test_figures_of_another_kind_are_refused(tmp_path):
    run = write_tuned(tmp_path)
    (run / "metrics.json").write_text('{"protocols": {"full": {"rows": 1}}}')
    with pytest.raises(UserError, match=r"metrics.json is not what finetune.py writes"):
        report(run)


def test_no_text_of_a_run_becomes_markup(tmp_path):
    evil = "<script>alert(1)</script><img src=\"http://example.org/x\" onerror='x'>&amp;"
    name = evil.replace("/", "_")
    run = write_aligned(tmp_path / name, model_name_or_path=evil, deepspeed=f'"{evil}')
    write_log(run, [{"step": 1, f"train {evil}": 1.0, f"a/{evil}@5": 2.0, f"a/{evil}@10": 3.0}])
    manifest = stage_one(8, model_name_or_path=evil) | {"versions": {evil: evil}, "metrics": {evil: evil}}
    write_manifest(run, "last", manifest)
    page = report(run)
    assert page.all("script") == [] and page.all("img") == []
    assert not [e for e in page.elements if any(key.startswith("on") for key in e.attributes)]
    assert page.all("h1")[0].text == name and page.all("title")[0].text == f"{name}: stage one"
    assert page.facts()["LLM"] == evil
    # ... and the names of a log come through whole: in pictures, legends and tables.
    assert evil.split("/")[-1] + "@10" in page.text


def test_the_page_asks_for_nothing_from_outside(tmp_path):
    run = write_tuned(tmp_path)
    write_tests(run)
    page = report(run)
    targets = [e.attributes[key] for e in page.elements for key in ("src", "href") if key in e.attributes]
    assert targets == ["data:,"]
    (style,) = page.all("style")
    assert "url(" not in style.text and "@import" not in style.text
    assert re.findall(r"https?:", page.source) == []
    policy = next(e for e in page.all("meta") if "http-equiv" in e.attributes)
    assert policy.attributes["content"].startswith("default-src 'none'")


def test_a_name_that_is_no_text_costs_no_page(tmp_path):
    write_log(tmp_path, [{"step": 1, "\ud800 odd": 1.0}])
    assert "? odd" in report(tmp_path).text


def test_command_writes_beside_the_run_or_where_it_is_told(tmp_path, capsys, monkeypatch):
    run = write_aligned(tmp_path / "run")
    assert cli.main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", str(run), "--out", "pages/one.html"]) == 0
    Page((tmp_path / "pages" / "one.html").read_text())
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == ["one.html"]


def test_command_explains_what_it_lacks(tmp_path, capsys):
    assert cli.main(["report"]) == 2
    assert "lsvcr report needs --run" in capsys.readouterr().err
    assert cli.main(["report", str(write_aligned(tmp_path / "run")), "--out", str(tmp_path)]) == 2
    assert "is a folder; give the name of an HTML file" in capsys.readouterr().err


def test_it_needs_no_torch():
    from tests.guards.test_import_cost import loaded_by

    assert not {"torch", "transformers", "deepspeed"} & loaded_by("import lsvcr.experiments.report")
