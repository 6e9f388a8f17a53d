"""`lsvcr compare` on the tiny world: what is trained when, what fails how, and what is written."""

import json
import shutil
from pathlib import Path

import pytest

from lsvcr import cli
from lsvcr.data.store import open_dataset
from lsvcr.experiments import compare as command
from lsvcr.experiments.compare import compare
from lsvcr.experiments.compare_models import choose, members, row_settings
from lsvcr.experiments.compare_recipe import job, recipe
from lsvcr.experiments.compare_text import cells
from lsvcr.settings import CompareSettings
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import read_json
from tests.experiments import browser
from tests.experiments.compare_runs import (
    SASREC,
    InProcess,
    asked,
    flags,
    forget_accelerate,
    in_process,
    one_thread,
    write_world,
)
from tests.experiments.report_folders import Page
from tests.guards.source import ROOT

ROWS = "popularity,sasrec:searched,item_knn,lsvcr,lsvcr-untuned,lsvcr-no-comments,lsvcr-text,lsvcr-id,sasrec:broken"


@pytest.fixture(scope="module")
def world(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world with everything that a comparison may ask for."""
    return write_world(tmp_path_factory.mktemp("compare"), tiny_data)


@pytest.fixture(scope="module")
def worker():
    """Workers run in this process."""
    with pytest.MonkeyPatch.context() as patch, one_thread():
        yield in_process(patch)
    forget_accelerate()


@pytest.fixture(scope="module")
def whole(world: Path, worker: InProcess) -> CompareSettings:
    """A comparison of everything, two seeds and two trials, done; one of its models cannot be trained."""
    settings = asked(world, ROWS, out=str(world / "whole"), seeds=2, trials=2, aligned=str(world / "aligned"))
    compare(settings)
    worker.jobs.clear()
    return settings


@pytest.fixture
def report(whole: CompareSettings) -> dict:
    """What it wrote."""
    return read_json(Path(whole.out) / "compare.json")


def row(report: dict, name: str) -> dict:
    """A row of a report."""
    return next(row for row in report["rows"] if row["name"] == name)


def test_every_row_is_there_in_the_order_asked_for(report):
    names = [row["name"] for row in report["rows"]]
    assert names == [
        *("popularity", "sasrec-searched", "item_knn", "lsvcr", "lsvcr-untuned", "lsvcr-no-comments"),
        *("lsvcr-text", "lsvcr-id", "sasrec-broken"),
    ]
    assert report["seeds"] == [2024, 2025] and report["split"] == "test" and report["task"] == "rec"


def test_figures_are_those_of_the_runs(report):
    for name in ("lsvcr", "sasrec-searched", "popularity"):
        found = row(report, name)
        tests = [read_json(Path(run) / "metrics.json")["protocols"]["full"] for run in found["runs"]]
        assert len(tests) == (1 if name == "popularity" else 2)
        values = [test["metrics"]["ndcg@10"]["value"] for test in tests]
        assert found["metrics"]["ndcg@10"]["by_seed"] == pytest.approx(values)
        assert found["metrics"]["ndcg@10"]["value"] == pytest.approx(sum(values) / len(values))
        assert {test["fingerprint"]["digest"] for test in tests} == {report["fingerprint"]["digest"]}
        assert found["answer_ms"] > 0 and found["seconds"] > 0
    assert row(report, "popularity")["parameters"] == 0 < row(report, "lsvcr-id")["parameters"]


def test_rows_of_lsvcr_are_what_they_say(report):
    parts = {
        "lsvcr": (False, False, False, True),
        "lsvcr-untuned": (False, False, False, False),
        "lsvcr-no-comments": (False, False, True, True),
        "lsvcr-text": (False, True, False, True),
        "lsvcr-id": (True, False, False, False),
    }
    for name, expected in parts.items():
        found = row(report, name)
        kept = found["settings"]
        flags = tuple(kept[f"disable_{part}"] for part in ("text", "id", "comments"))
        assert (*flags, "stage-one checkpoint" in found["inputs"]) == expected
        manifest = read_json(Path(found["runs"][0]) / "best" / "manifest.json")
        assert (manifest["parent"] is not None) == expected[3] and (manifest["texts"] is None) == expected[0]


def test_the_reference_is_the_best_baseline_on_validation(report):
    baselines = [row for row in report["rows"] if row["baseline"] and not row["failed"]]
    best = max(baselines, key=lambda row: row["validation"])
    assert report["reference"] == best["name"]
    for found in report["rows"]:
        if not found["failed"]:
            tested = found["metrics"]["ndcg@10"]["versus"] is not None
            assert tested == (found["name"] != report["reference"])


def test_every_trial_is_kept_and_the_best_one_used(report):
    found = row(report, "sasrec-searched")
    tried = found["trials"]
    assert tried[0]["settings"] == {"learning_rate": 0.01, "dropout": 0.1}  # the file's own come first
    assert len(tried) == 2 and tried[0]["settings"] != tried[1]["settings"]
    best = max(tried, key=lambda note: note["value"])
    assert found["chosen"] == best["settings"]
    assert all(found["settings"][name] == value for name, value in best["settings"].items())
    assert str(Path(found["runs"][0]).parent) == best["folder"]  # with the first seed it is trained already
    assert len(row(report, "lsvcr")["trials"]) == 2 and row(report, "popularity")["trials"] == []


def test_a_model_that_fails_has_its_reason_and_stops_no_other(report):
    found = row(report, "sasrec-broken")
    assert "all 2 trials failed" in found["failed"] and "multiple of --heads 3" in found["failed"]
    assert all(note["value"] is None and "--heads 3" in note["why"] for note in found["trials"])
    assert found["fallback_search"] and sum(not row["failed"] for row in report["rows"]) == 8
    heads, lines = cells(report)
    assert lines[-1][:2] == ["sasrec-broken", "failed"] and len(lines[-1]) == len(heads)


def test_again_nothing_is_trained_and_nothing_changes(whole, worker, report):
    # What failed is tried again; what it fails on costs no training.
    again = compare(whole)
    assert set(worker.trained()) == {"sasrec-broken"}
    assert again == report


def test_a_changed_setting_trains_what_it_changes_alone(whole, world, worker, tmp_path):
    out = shutil.copytree(whole.out, tmp_path / "out")
    file = world / "config" / "compare" / "lsvcr-id.yaml"
    file.write_text((world / "config" / "compare" / "lsvcr.yaml").read_text().replace("heads: 2", "heads: 4"))
    models = "popularity,sasrec:searched,lsvcr-text,lsvcr-id"
    compare(asked(world, models, out=str(out), seeds=1, trials=2, aligned=whole.aligned))
    file.unlink()
    assert set(worker.trained()) == {"lsvcr-id"}


def test_what_a_folder_of_settings_lacks_comes_from_the_checkout(world):
    settings = asked(world, "all")
    own = {
        "sasrec": world / "config" / "baselines" / "sasrec.yaml",
        "lsvcr-text": world / "config" / "compare" / "lsvcr.yaml",
    }
    others = {"item_knn": "baselines/item_knn.yaml", "hllm": "hllm/hllm.yaml"}
    for name, file in (own | {name: ROOT / "config" / file for name, file in others.items()}).items():
        assert row_settings(members()[name], settings)[0] == file


def test_more_seeds_and_other_data_train_what_is_missing(world, worker, tmp_path):
    settings = asked(world, "sasrec", out=str(tmp_path))
    compare(settings)
    assert worker.trained() == ["sasrec"]
    compare(asked(world, "sasrec", out=str(tmp_path), seeds=2))
    assert worker.trained() == ["sasrec"]
    assert len(list((tmp_path / "runs" / "sasrec").iterdir())) == 2
    moved = tmp_path / "moved"
    moved.symlink_to(world / "data")
    compare(asked(world, "sasrec", out=str(tmp_path), data=str(moved)))
    assert worker.trained() == []  # the same data at another place


def test_the_page_needs_nothing_and_shows_every_figure(whole, report, tmp_path):
    source = (Path(whole.out) / "compare.html").read_text()
    page = Page(source)
    _, lines = cells(report)
    told = [cell.text.replace("\u00a0", " ") for cell in (*page.all("td"), *page.all("th"))]
    for line in lines:
        for cell in line:
            assert cell in told, cell
    assert any("sasrec-broken failed" in warning for warning in page.warnings())
    bars = len(page.all("rect", "bar"))
    assert bars == 8 * len(page.all("figure"))
    assert len(page.all("path", "whisker")) == bars and len(page.all("rect", "reference")) == bars // 8
    browser.find()
    seen = browser.dump(Path(whole.out) / "compare.html", tmp_path)
    assert seen.count('class="bar') == source.count('class="bar') == bars
    for found in browser.measure(source, (320, 1280), tmp_path):
        assert found["scripts"] == 0 and found["asked_for"] == []
        assert found["scroll_width"] <= found["width"] and all(width > 0 for width in found["pictures"])


def test_markdown_has_every_table(whole, report):
    text = (Path(whole.out) / "compare.md").read_text()
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert all(len({line.count(" | ") for line in table if "\\|" not in line}) == 1 for table in tables)
    assert [len(table) - 2 for table in tables] == [9, 8, 8, 8, 16]  # the table, three metrics, the trials
    for heading in ("## recall@10", "## ndcg@10", "## mrr@10", "## Trials", "Failed: sasrec-broken"):
        assert heading in text
    assert f"| {row(report, 'lsvcr')['metrics']['ndcg@10']['value']:.4f}" in text


def test_the_command_prints_json_and_its_code_says_that_a_model_failed(whole, worker, report, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", *flags(whole), "--json"])
    assert ended.value.code == 1 and json.loads(capsys.readouterr().out) == report


def test_the_command_prints_the_table_and_where_the_rest_is(whole, world, worker, tmp_path, capsys):
    out = shutil.copytree(whole.out, tmp_path / "out")
    settings = asked(world, "popularity,lsvcr-id", out=str(out), seeds=2, trials=2)
    assert cli.main(["compare", *flags(settings)]) == 0
    shown = capsys.readouterr().out
    for part in (
        "popularity (best baseline)",
        "N@10 - popularity",
        "p (Holm)",
        "compare.html",
        "2 trials a model",
    ):
        assert part in shown


def test_comments_are_compared_with_their_popularity(world, worker, tmp_path):
    settings = asked(
        world, "all", out=str(tmp_path), task="CommRank", metric="NDCG@5", metrics="mrr@10 ndcg@5"
    )
    report = compare(settings)
    assert [row["name"] for row in report["rows"]] == [
        *("comment_popularity", "comment_likes", "lsvcr-untuned"),
        *("lsvcr-no-comments", "lsvcr-text", "lsvcr-id"),
    ]
    assert report["reference"].startswith("comment_") and report["metrics"] == ["mrr@10", "ndcg@5"]
    assert "give --aligned RUN" in report["left_out"]["lsvcr"]
    assert "recommends videos" in report["left_out"]["sasrec"]
    assert all(row["answer_ms"] > 0 and not row["failed"] for row in report["rows"])


def test_all_takes_what_the_data_serve_and_says_what_not(world):
    settings = asked(world, "all")
    chosen, left_out = choose("all", open_dataset(settings.data), settings)
    assert {member.name for member in chosen} | set(left_out) == set(members())
    assert "sasrec" in {member.name for member in chosen}
    assert set(left_out) >= {"lsvcr", "comment_popularity", "comment_likes"}
    assert all(left_out.values())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"models": "sasrek"}, "no model 'sasrek'; did you mean sasrec?"),
        ({"models": "lsvcr-ids"}, "did you mean lsvcr-id?"),
        ({"models": "sasrec,popularity,sasrec"}, "--models has sasrec twice"),
        ({"models": "sasrec:serched"}, "no settings baselines/serched.yaml"),
        ({"models": ","}, "--models wants names"),
        ({"models": "lsvcr"}, "lsvcr needs a stage-one run: give --aligned RUN, or use lsvcr-untuned"),
        ({"models": "comment_likes"}, "compare it with --task CommRank"),
        ({"models": "sasrec", "task": "CommRank"}, "here use comment_popularity"),
        (
            {"models": "lsvcr-untuned", "untuned": "nowhere"},
            "(nowhere/photo_full_embs.npy, nowhere/comment_full_embs.npy): make them with `lsvcr embed",
        ),
        ({"models": "lsvcr", "aligned": "nowhere"}, "lsvcr: --pretrain_checkpoint nowhere"),
        ({"seeds": 0}, "--seeds 0 must be 1 or more"),
        ({"trials": 0}, "--trials 0 must be 1 or more"),
        ({"metric": "ndgc@10"}, "did you mean ndcg?"),
        ({"metrics": "map@20"}, "--metrics map@20: tests keep recall@1"),
        ({"metrics": " "}, "--metrics wants names"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_trained(world, worker, changes, told, tmp_path):
    worker.jobs.clear()
    settings = asked(world, **{"models": "sasrec", "out": str(tmp_path / "out"), **changes})
    with pytest.raises(UserError) as error:
        compare(settings)
    assert told in str(error.value) and worker.trained() == []


def test_a_search_may_not_move_what_makes_a_row(world, worker, tmp_path):
    file = world / "config" / "compare" / "wrong.yaml"
    file.write_text("search:\n  disable_text: [true, false]\n")
    with pytest.raises(UserError, match="search must leave disable_text alone"):
        compare(asked(world, "lsvcr-id:wrong", out=str(tmp_path)))
    file.write_text("search:\n  learning_rate: 0.1\n")
    with pytest.raises(UserError, match="line 2: learning_rate wants a list"):
        compare(asked(world, "lsvcr-id:wrong", out=str(tmp_path)))
    file.unlink()


def test_two_commands_do_not_share_a_folder(world, worker, tmp_path):
    with command._alone(tmp_path), pytest.raises(UserError, match="another `lsvcr compare` works in"):
        compare(asked(world, "popularity", out=str(tmp_path)))


def test_several_stage_one_runs_take_turns_and_the_contents_make_the_key(world, tmp_path):
    other = shutil.copytree(world / "aligned", tmp_path / "other")
    manifest = other / "best" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"settings": {}', '"settings": {"seed": 7}'))
    moved = shutil.copytree(world / "aligned", tmp_path / "moved")

    def keys(*runs: Path) -> list[str]:
        settings = asked(world, "lsvcr", aligned=",".join(map(str, runs)))
        dataset = open_dataset(settings.data)
        own = recipe(members()["lsvcr"], dataset, settings)
        jobs = [job(own, {"learning_rate": 0.5}, dataset, settings, place) for place in (0, 1, 2)]
        assert [each.settings["pretrain_checkpoint"] for each in jobs] == [
            str(runs[place % len(runs)]) for place in (0, 1, 2)
        ]
        assert [each.settings["seed"] for each in jobs] == [2024, 2025, 2026]
        return [each.key for each in jobs]

    first, turns = keys(world / "aligned"), keys(world / "aligned", other)
    assert len(set(first)) == 3 and keys(moved) == first
    assert turns[0] == first[0] and turns[1] != first[1] and turns[2] == first[2]


def test_a_launcher_is_refused(world, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start it without a launcher"):
        compare(asked(world, "popularity"))


def test_the_list_of_models(capsys):
    assert cli.main(["compare", "--models", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("sasrec", "popularity", "lsvcr-untuned", "comment_likes"))


def test_epochs_bound_every_model(world, worker, tmp_path):
    three = SASREC.replace("num_train_epochs: 1", "num_train_epochs: 3")
    (world / "config" / "baselines" / "three.yaml").write_text(three)
    report = compare(asked(world, "sasrec,sasrec:three", out=str(tmp_path), epochs=2))
    assert [row["settings"]["num_train_epochs"] for row in report["rows"]] == [1, 2]
    logs = [Path(row["runs"][0]) / "metrics.jsonl" for row in report["rows"]]
    assert [len(log.read_text().splitlines()) for log in logs] == [1, 2]
