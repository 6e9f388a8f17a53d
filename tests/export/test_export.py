"""`lsvcr export`: what a bundle answers is what its checkpoints say, or there is no bundle."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lsvcr import cli
from lsvcr.evaluation.metrics import Ranks, compute
from lsvcr.export import bundle as exporting
from lsvcr.export.asked import Questions
from lsvcr.export.bundle import export, summary
from lsvcr.export.parts import open_sources
from lsvcr.schema import Split, Task
from lsvcr.serving import bundle_write
from lsvcr.serving.runtime import Recommender
from lsvcr.training.rank_evaluate import evaluate_checkpoint
from lsvcr.utils.errors import UserError
from tests.export.checkpoints import Place
from tests.guards.source import ROOT

OPTIONS = {
    "plain": {},
    "no ids": {"disable_id": True},
    "no text": {"disable_text": True},
    "no comments": {"disable_comments": True},
    "no ids, no comments": {"disable_id": True, "disable_comments": True},
    "as published": {"start_near_identity": False},
    "few ids": {"min_id_count": 4},
    "a head": {"wide": True},
    "a head on raw states": {"wide": True, "standardise_texts": False, "disable_id": True},
    "short histories": {"max_phis_len": 3, "max_chis_len": 2},
    "deeper": {"layers": 2, "heads": 4},
}
BOTH = pytest.mark.parametrize("task", [Task.REC, Task.COMM_RANK])


def made(place: Place, task: Task, name: str) -> Path:
    changes = dict(OPTIONS[name])
    if changes.pop("wide", False):
        changes |= place.wide_texts()
    return place.run(task, f"{task.value} {name}", **changes)


def siblings(folder: Path) -> set[str]:
    """What lies beside a bundle, hidden leftovers of writers too."""
    return {path.name for path in folder.parent.iterdir()}


@BOTH
@pytest.mark.parametrize("name", OPTIONS)
def test_every_kind_of_checkpoint(tiny: Place, tmp_path: Path, task: Task, name: str) -> None:
    manifest = export(tiny.settings(made(tiny, task, name), out=str(tmp_path / "bundle")))
    found = manifest["verified"][task.value]
    assert found["rows"] == len(tiny.dataset.samples(task, Split.TEST)) > 10
    assert (
        found["max_difference"] < 1e-5
        and not found["other_top_10_but_for_rounded_rows"]
        and found["overlap@10"] == 1
    )
    assert manifest["quantisation"] is None and manifest["counts"]["users"] == 0
    recommender = Recommender.load(tmp_path / "bundle")
    assert recommender.tasks == (task.value,)


@BOTH
@pytest.mark.parametrize("name", ["plain", "no ids", "no text", "a head"])
def test_metrics_through_the_runtime_are_those_of_evaluate(
    tiny: Place, tmp_path: Path, task: Task, name: str
) -> None:
    run = made(tiny, task, name)
    export(tiny.settings(run, out=str(tmp_path / "bundle"), verify_rows=1))
    recommender = Recommender.load(tmp_path / "bundle")
    source = open_sources([str(run)], tiny.dataset)[task]
    data = source.setup.data(Split.TEST)
    rows, questions = np.arange(len(data)), Questions(data)
    if task is Task.REC:
        answers = recommender.recommend_many(questions.videos(rows, tiny.dataset.n_videos))
        ids = [""] + tiny.dataset.raw_ids("videos").to_list()
    else:
        answers = recommender.rank_comments_many(questions.comments(rows))
        ids = [""] + tiny.dataset.raw_ids("comments").to_list()
    positives = data.positives(rows)
    higher, tied = [], []
    for row, answer in enumerate(answers):
        scores = {item.id: item.score for item in answer.items}
        start = positives.starts[row]
        for index in positives.items[start : start + positives.counts[row]]:
            own = scores[ids[index]]
            higher.append(sum(score > own for score in scores.values()))
            tied.append(sum(score == own for score in scores.values()))
    offsets = np.concatenate([[0], np.cumsum(positives.counts)])
    values = compute(Ranks(offsets, np.array(higher), np.array(tied)), ("ndcg@10", "recall@5", "mrr@10"))
    report = evaluate_checkpoint(str(run), str(tiny.data), protocol="full")["protocols"]["full"]["metrics"]
    for metric, value in values.items():
        assert value.mean() == pytest.approx(report[metric]["value"], abs=1e-6), metric


def test_two_tasks_text_ids_users_and_summary(named: Place, tmp_path: Path, capsys) -> None:
    runs = [named.run(task) for task in (Task.COMM_RANK, Task.REC)]
    out = tmp_path / "bundle"
    words = ["export", *map(str, runs), "--data", str(named.data), "--out", str(out)]
    assert cli.main([*words, "--with_users", "True", "--text_encoder", "True"]) == 0
    told = capsys.readouterr().out
    recommender = Recommender.load(out)
    assert set(recommender.tasks) == {"rec", "comm_rank"}
    manifest = recommender.manifest
    assert told == summary(manifest, str(out)) and "Rec: asked about 40 test samples" in told
    assert manifest["counts"] == {"videos": 24, "comments": 72, "users": 40}
    for task, run in zip(("comm_rank", "rec"), runs, strict=True):
        assert manifest["parents"][task]["run"] == run.name and manifest["parents"][task]["metrics"] is None
    assert str(named.root) not in json.dumps(manifest), "a bundle knows nothing of the machine it was made on"
    assert recommender.title("视频-3") == "视频-3 的标题 title"
    liked, visits = recommender.histories("user 007")
    world = named.dataset.video_events
    assert liked == [f"视频-{v}" for v in world.items[world.offsets[8] : world.offsets[9]]][-8:]
    assert visits[-1]["video"] == liked[-1] and len(visits) == len(liked)
    answer = recommender.recommend_user("user 007", k=24)
    assert not {item.id for item in answer.items} & set(liked)
    assert [item.score for item in answer.items] == [
        pytest.approx(item.score, abs=1e-6) for item in recommender.recommend(liked, visits, k=24).items
    ]


def test_stored_users_are_cut_to_what_counts(tiny: Place, tmp_path: Path) -> None:
    run = tiny.run(Task.REC, max_phis_len=3, max_chis_len=2)
    export(tiny.settings(run, out=str(tmp_path / "bundle"), with_users=True, verify_rows=3))
    recommender = Recommender.load(tmp_path / "bundle")
    events, written = tiny.dataset.video_events, tiny.dataset.comment_events
    videos = [None, *tiny.dataset.raw_ids("videos").to_list()]
    comments = [None, *tiny.dataset.raw_ids("comments").to_list()]
    for index, user in enumerate(tiny.dataset.raw_ids("users").to_list(), start=1):
        own = events.items[events.offsets[index] : events.offsets[index + 1]]
        liked, visits = recommender.histories(user)
        assert liked == [videos[v] for v in own[-3:]]
        span = slice(written.offsets[index], written.offsets[index + 1])
        groups = written.groups[span]
        last = [] if not len(groups) else sorted(set(groups.tolist()))[-2:]
        expected = [
            [comments[c] for c, g in zip(written.items[span], groups, strict=True) if g == group]
            for group in last
        ]
        assert [visit["comments"] for visit in visits] == expected
        answer = recommender.recommend_user(user, k=100)
        assert {item.id for item in answer.items} == set(videos[1:]) - {videos[v] for v in own}


def test_users_are_left_out_unless_asked_for(tiny: Place, tmp_path: Path) -> None:
    export(tiny.settings(tiny.run(Task.REC), out=str(tmp_path / "bundle"), verify_rows=1))
    assert not (tmp_path / "bundle" / "users").exists()


@BOTH
def test_new_texts_get_rows_as_the_tables_hold_them(tiny: Place, tmp_path: Path, task: Task) -> None:
    from lsvcr.serving.encoder import Tower

    run = tiny.run(task, disable_id=True, **tiny.wide_texts())
    export(tiny.settings(run, out=str(tmp_path / "bundle"), verify_rows=1))
    bundle = Recommender.load(tmp_path / "bundle").bundle
    part = bundle.parts[task]
    folder = tiny.root / "wide"
    assert part.tower is not None and bundle.manifest["text_width"] == 24
    tower = Tower(part.tower)
    titles = tower.rows(np.load(folder / "photo_full_embs.npy"))
    contents = tower.rows(np.load(folder / "comment_full_embs.npy"))
    np.testing.assert_allclose(titles.entry, part.entries, atol=1e-5)
    np.testing.assert_allclose(contents.shown, part.shown, atol=1e-5)
    items = titles.projected if task is Task.REC else contents.projected
    lengths = np.linalg.norm(items, axis=1, keepdims=True)
    np.testing.assert_allclose(items / np.maximum(lengths, 1e-8), part.items.values, atol=1e-5)
    if part.watched is not None:
        np.testing.assert_allclose(titles.projected, part.watched, atol=1e-5)


@BOTH
@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"rows": "float16"}, ("float16", "float32")),
        ({"rows": "int8"}, ("int8", "float32")),
        ({"quantize": "int8"}, ("int8", "int8")),
    ],
)
def test_rounding_is_measured_and_told(tiny: Place, tmp_path: Path, task: Task, changes, kinds) -> None:
    manifest = export(tiny.settings(tiny.run(task), out=str(tmp_path / "bundle"), **changes))
    assert manifest["rows"] == kinds[0] and manifest["parts"][task.value]["encoder"] == kinds[1]
    told = manifest["quantisation"]
    assert (told["rows"], told["encoder"]) == kinds and 0.8 < told[task.value]["overlap@10"] <= 1
    metrics = manifest["verified"][task.value]["metrics"]
    assert told[task.value]["ndcg@10 loss"] == pytest.approx(
        metrics["ndcg@10"]["checkpoint"] - metrics["ndcg@10"]["bundle"]
    )
    assert "recall@10 loss" in told[task.value]
    items = np.load(tmp_path / "bundle" / task.value / "items.npy")
    assert items.dtype == manifest["rows"]


TABLES = ["items", "entries", "shown", "watched"]


@BOTH
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("rows", ["float32", "int8"])
def test_a_wrong_table_is_refused(
    tiny: Place, tmp_path, monkeypatch, task: Task, table: str, rows: str
) -> None:
    if table == "watched" and task is Task.REC:
        table = "encoder"
    make = exporting.make_part

    def tampered(*arguments):
        part = make(*arguments)
        if table == "encoder":
            other = tiny.run(task, seed=9)
            source = open_sources([str(other)], tiny.dataset)[task]
            return replace(part, encoder=make(source).encoder)
        # Two rows change places, as where an index is one off.
        return replace(part, **{table: np.roll(getattr(part, table), 1, axis=0)})

    monkeypatch.setattr(exporting, "make_part", tampered)
    run, out = tiny.run(task), tmp_path / "bundle"
    with pytest.raises(UserError, match=f"does not answer as .*{run.name}.* was not written.*sample"):
        export(tiny.settings(run, out=str(out), rows=rows))
    assert siblings(out) == set()


def test_ids_in_another_order_are_refused(named: Place, tmp_path: Path, monkeypatch) -> None:
    make = exporting.video_table
    monkeypatch.setattr(
        exporting, "video_table", lambda dataset: replace(make(dataset), ids=make(dataset).ids[::-1])
    )
    with pytest.raises(UserError, match="does not answer"):
        export(named.settings(named.run(Task.REC), out=str(tmp_path / "bundle")))
    assert siblings(tmp_path / "bundle") == set()


def test_a_full_disk_leaves_the_earlier_bundle(tiny: Place, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "bundle"
    run = tiny.run(Task.REC)
    before = export(tiny.settings(run, out=str(out), verify_rows=1))
    save, written = np.save, []

    def full(path, array, **more):
        written.append(path)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(path, array, **more)

    monkeypatch.setattr(bundle_write.np, "save", full)
    with pytest.raises(UserError, match="no space left"):
        export(tiny.settings(run, out=str(out), verify_rows=1))
    assert len(written) == 6 and siblings(out) == {"bundle"}
    assert Recommender.load(out).manifest == before


KILLED = """
import os, signal, sys
from lsvcr.export import bundle
from lsvcr.settings import ExportSettings
bundle.verify = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
bundle.export(ExportSettings(checkpoint=sys.argv[1], data=sys.argv[2], out=sys.argv[3]))
"""


def test_an_approximate_index_is_asked_for_and_measured(tiny: Place, tmp_path: Path) -> None:
    run = tiny.run(Task.REC)
    manifest = export(tiny.settings(run, out=str(tmp_path / "bundle"), ann_from=10))
    assert manifest["index"]["kind"] == "hnsw" and manifest["index"]["recall@10"] > 0.9
    assert "approximate index: finds" in summary(manifest, "bundle")
    never = export(tiny.settings(run, out=str(tmp_path / "bundle"), ann_from=0))
    assert never["index"] == {"kind": "exact"}


def test_a_killed_export_leaves_nothing_that_counts(tiny: Place, tmp_path: Path) -> None:
    out, run = tmp_path / "bundle", tiny.run(Task.REC)
    command = [sys.executable, "-c", KILLED, str(run), str(tiny.data), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not out.exists() and len(siblings(out)) == 1
    export(tiny.settings(run, out=str(out), verify_rows=1))
    assert siblings(out) == {"bundle"}


def test_what_is_no_bundle_is_not_replaced(tiny: Place, tmp_path: Path) -> None:
    run = tiny.run(Task.REC)
    for there in (tiny.data, run):
        before = siblings(there / "x")
        with pytest.raises(UserError, match="holds other files than a bundle"):
            export(tiny.settings(run, out=str(there)))
        assert siblings(there / "x") == before
    (tmp_path / "empty").mkdir()
    settings = tiny.settings(run, out=str(tmp_path / "empty"), verify_rows=1)
    export(settings)
    export(settings)
    (tmp_path / "empty" / "changes.journal").write_text("acknowledged")
    with pytest.raises(UserError, match=r"other files than a bundle: changes\.journal"):
        export(settings)
    assert (tmp_path / "empty" / "changes.journal").read_text() == "acknowledged"


def test_checkpoints_that_do_not_go_together(tiny: Place, named: Place, tmp_path: Path) -> None:
    rec = tiny.run(Task.REC)
    cases = {
        "are both checkpoints for Rec": (rec, tiny.run(Task.REC), {}),
        "--hidden 16, .* with --hidden 32": (rec, tiny.run(Task.COMM_RANK, hidden=32), {}),
        "--max_phis_len 8, .* with --max_phis_len 4": (rec, tiny.run(Task.COMM_RANK, max_phis_len=4), {}),
        "text vectors in": (rec, tiny.run(Task.COMM_RANK, **tiny.wide_texts()), {}),
        "another dataset": (named.run(Task.REC), Path(), {}),
        "no stage-two checkpoint": (tmp_path, Path(), {}),
        "drop --rows float16": (rec, Path(), {"rows": "float16", "quantize": "int8"}),
        "--verify_rows -1": (rec, Path(), {"verify_rows": -1}),
        "disable_text": (tiny.run(Task.REC, disable_text=True), Path(), {"text_encoder": True}),
    }
    for message, (first, second, changes) in cases.items():
        runs = [first] if second == Path() else [first, second]
        with pytest.raises(UserError, match=message):
            export(tiny.settings(*runs, out=str(tmp_path / "out" / "bundle"), **changes))
        assert not (tmp_path / "out").exists() or siblings(tmp_path / "out" / "bundle") == set()


def test_a_model_without_text_goes_with_one_that_has_it(tiny: Place, tmp_path: Path) -> None:
    runs = [tiny.run(Task.REC, disable_text=True), tiny.run(Task.COMM_RANK)]
    manifest = export(tiny.settings(*runs, out=str(tmp_path / "bundle")))
    assert manifest["text_width"] == 8
    parts = Recommender.load(tmp_path / "bundle").bundle.parts
    assert parts[Task.REC].tower is None and parts[Task.COMM_RANK].tower is not None


def test_some_samples_are_spread_over_the_split(tiny: Place, tmp_path: Path, monkeypatch) -> None:
    from lsvcr.export import verify

    asked = []
    compare = verify.compare
    monkeypatch.setattr(verify, "compare", lambda *a: (asked.extend(a[3]), compare(*a))[1])
    manifest = export(tiny.settings(tiny.run(Task.REC), out=str(tmp_path / "bundle"), verify_rows=5))
    total = len(tiny.dataset.samples(Task.REC, Split.TEST))
    assert manifest["verified"]["rec"]["rows"] == 5
    assert asked[0] == 0 and asked[-1] == total - 1 and (np.diff(asked) >= total // 5).all()


def test_the_bundle_answers_without_torch(tiny: Place, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    export(tiny.settings(tiny.run(Task.REC), out=str(out), verify_rows=1, text_encoder=True))
    code = (
        "import sys; from lsvcr.serving.runtime import Recommender\n"
        "from lsvcr.serving.text_encoder import TextEncoder\n"
        f"r = Recommender.load({str(out)!r}); e = TextEncoder.open(r.bundle.root)\n"
        "assert e.encode(['cats']).shape == (1, 8) and len(r.recommend([1, 2], k=3).items) == 3\n"
        "assert not {'torch', 'transformers', 'polars'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_trained_run_and_its_metrics(named: Place, tmp_path: Path, fresh_accelerator) -> None:
    from lsvcr.training.rank import run as fine_tune
    from tests.training.rank_runs import SMALL

    texts = {
        f"{name}_emb_file": str(named.root / "texts" / f"{name}_embs.npy") for name in ("photo", "comment")
    }
    run = tmp_path / "run"
    fine_tune(replace(SMALL, data_path=str(named.data), output_dir=str(run), num_train_epochs=1, **texts))
    manifest = export(named.settings(run, out=str(tmp_path / "bundle")))
    told = json.loads((run / "metrics.json").read_text())["protocols"]["full"]["metrics"]["ndcg@10"]["value"]
    assert manifest["parents"]["rec"]["metrics"]["ndcg@10"] == told
    assert manifest["verified"]["rec"]["metrics"]["ndcg@10"]["bundle"] == pytest.approx(told, abs=1e-6)
    assert torch.is_grad_enabled()
