"""Pages about click models: curves by epoch, sizes with their law, and the sweep that makes them."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from accelerate.state import AcceleratorState, GradientState

from lsvcr import cli
from lsvcr.experiments.clicks_report import by_size, over_epochs, read_click_run, scaling_chart
from lsvcr.experiments.clicks_sweep import SweepSettings, jobs, run
from lsvcr.utils.errors import UserError
from tests.click_world import write_click_world

TESTS = {"val/auc": 0.5, "train/loss": 0.6, "test/gauc": 0.5, "test/log_loss": 0.6}


def fabricate(
    folder: Path, aucs: list[float], dense: int = 1000, data_hash: str = "one", done: bool = True
) -> Path:
    """A run folder with these test AUCs by epoch, 10 steps each, the first epoch being the best."""
    (folder / "last").mkdir(parents=True)
    progress = {"epoch": len(aucs), "step": 10 * len(aucs), "best_epoch": 1}
    manifest = {
        "kind": "clicks",
        "settings": {"transfer": "nt"},
        "progress": progress,
        "data_hash": data_hash,
    }
    (folder / "last" / "manifest.json").write_text(json.dumps(manifest))
    lines = [{"step": 10 * (i + 1), **TESTS, "test/auc": value} for i, value in enumerate(aucs)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if done:
        values = {"auc": aucs[0], "gauc": None, "log_loss": 1 - aucs[0]}
        metrics = {name: {"value": value, "interval": None} for name, value in values.items()}
        report = {
            "protocols": {"impressions": {"rows": 9, "metrics": metrics}},
            "parameters": {"all": 3 * dense, "trained": 2 * dense, "dense": dense},
            "checkpoint": {"epoch": 1},
        }
        (folder / "metrics.json").write_text(json.dumps(report))
    return folder


def test_epochs_are_counted_and_seeds_averaged(tmp_path: Path) -> None:
    runs = [
        read_click_run(fabricate(tmp_path / n, aucs))
        for n, aucs in (("a", [0.7, 0.6]), ("b", [0.8, 0.7, 0.1]))
    ]
    chart = over_epochs({"NT": runs, "FT": runs[1:]}, "test/auc")
    assert chart.series["NT"] == {1: pytest.approx(0.75), 2: pytest.approx(0.65)}
    assert chart.series["FT"] == {1: 0.8, 2: 0.7, 3: 0.1}


def test_the_page_and_its_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = fabricate(tmp_path / "nt", [0.71, 0.69]), fabricate(tmp_path / "sf", [0.7, 0.72], done=False)
    words = ["clicks-report", f"NT={one}", f"FT&SF={two}", "--out", str(tmp_path / "all.html")]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "all.html"), str(tmp_path / "all.svg")]
    page = (tmp_path / "all.html").read_text()
    assert "FT&amp;SF" in page and "0.7100" in page and "<script" not in page and "http://" not in page
    picture = ElementTree.fromstring((tmp_path / "all.svg").read_text())
    texts = {element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"test AUC", "NT", "FT&SF", "epoch"} <= texts
    assert len(list(picture.iter("{http://www.w3.org/2000/svg}path"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "at least one LABEL=FOLDER"),
        (["x"], "does not have the form LABEL=FOLDER"),
        (["A={}/nt", "B={}/other"], "different datasets"),
        (["A={}/nt", "--out", "page.pdf"], "must name an HTML file"),
        (["A={}/none"], "is not a run folder"),
    ],
)
def test_what_cannot_be_drawn_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    fabricate(tmp_path / "nt", [0.7])
    fabricate(tmp_path / "other", [0.7], data_hash="two")
    assert cli.main(["clicks-report", *(word.format(tmp_path) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_sizes_and_their_law(tmp_path: Path) -> None:
    """1 - AUC is N^-0.25 at four sizes; a fifth is not finished."""
    sizes = {str(n): n for n in (100, 1000, 10_000, 100_000)}
    groups = {
        name: {"NT": [read_click_run(fabricate(tmp_path / name, [1 - n**-0.25], n))]}
        for name, n in sizes.items()
    }
    groups["open"] = {"NT": [read_click_run(fabricate(tmp_path / "open", [0.5], 7, done=False))]}
    scaling = by_size(groups, "auc")
    assert [size for size, _ in scaling.points["NT"]] == list(sizes.values())
    assert scaling.laws["NT"].b == pytest.approx(0.25, rel=1e-2)
    chart = scaling_chart(scaling)
    assert set(chart.series) == {"NT", "NT, law"}
    assert chart.series["NT, law"][100.0] == pytest.approx(100**-0.25, rel=1e-3)
    assert by_size({"a": groups["100"]}, "log_loss").laws == {}


def test_jobs_belong_together() -> None:
    planned = jobs(SweepSettings(data="d", out="o", sizes="8x1, 16x2", transfers="nt,FT&SF", seeds="1,2"))
    assert [(job.size, job.transfer, job.clicks.seed) for job in planned[:4]] == [
        ("8x1", "nt", 1),
        ("8x1", "ft-sf", 1),
        ("8x1", "nt", 2),
        ("8x1", "ft-sf", 2),
    ]
    assert len(planned) == 8
    last = planned[-1]
    assert (last.clicks.hidden, last.clicks.layers, last.clicks.pretrained) == (
        16,
        2,
        last.pretraining.output_dir,
    )
    assert not planned[0].needs_pretraining and last.needs_pretraining


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ""}, "give --data"),
        ({"sizes": "16"}, "WIDTHxLAYERS"),
        ({"seeds": "-1"}, "no whole number"),
        ({"transfers": "ftt"}, "--transfer is one of"),
        ({"sizes": ""}, "one or more"),
        ({"train": False}, "holds no run yet"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(SweepSettings(**{"data": "d", "out": str(tmp_path), **changes}))


@pytest.mark.slow
def test_a_sweep_trains_writes_and_goes_on(tmp_path: Path) -> None:
    """Two sizes and two transfers; then the same again, which only reads; then with other settings."""
    data = write_click_world(tmp_path / "world")
    (tmp_path / "a.yaml").write_text("num_train_epochs: 1\nmax_his: 5\nneg_video_num: 5\n")
    (tmp_path / "b.yaml").write_text("num_train_epochs: 2\nmax_his: 5\n")
    settings = SweepSettings(
        data=str(data),
        out=str(tmp_path / "out"),
        sizes="8x1,16x1",
        transfers="nt,ft-sf",
        pretrain_config=str(tmp_path / "a.yaml"),
        click_config=str(tmp_path / "b.yaml"),
    )
    try:
        written = run(settings)
        pictures = ["auc-8x1.svg", "auc-16x1.svg", "size-auc.svg", "size-log_loss.svg"]
        assert [path.name for path in written] == ["sweep.html", *pictures]
        first = {path: path.read_text() for path in written}
        assert "FT&amp;SF" in first[written[0]]
        assert {path: path.read_text() for path in run(settings)} == first
        (tmp_path / "b.yaml").write_text("num_train_epochs: 3\nmax_his: 5\n")
        with pytest.raises(UserError, match="num_train_epochs is 3 here and 2 there"):
            run(settings)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
