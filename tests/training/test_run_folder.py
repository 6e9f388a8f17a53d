"""One folder belongs to one run: of `lsvcr train`, of stage two and of `lsvcr clicks`, trained or fitted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from lsvcr.baselines.registry import find
from lsvcr.models import checkpoint
from lsvcr.settings import FittedSettings, RankSettings
from lsvcr.training import baseline, clicks, rank
from lsvcr.utils.errors import UserError
from lsvcr.utils.lock import run_lock
from tests.training.test_clicks import settings as click_settings

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def fitted(data: Path, out: Path, name: str = "popularity", **changes: object) -> FittedSettings:
    return find(name).settings(data_path=str(data), output_dir=str(out), **changes)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_fitted_recommender_comes_again_and_again(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the launcher says another precision."""
    report = baseline.run("popularity", fitted(tiny_data, tmp_path))
    assert baseline.run("popularity", fitted(tiny_data, tmp_path)) == report
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert baseline.run("popularity", fitted(tiny_data, tmp_path)) == report


def test_a_fitted_recommender_takes_no_other_runs_place(tiny_data: Path, tmp_path: Path) -> None:
    """Not that of a trained one, of a fitted one, of its own with other settings or on other data."""
    short = {"num_train_epochs": 1, "report_to": "none", "max_his": 6, "hidden": 8}
    baseline.run("sasrec", fitted(tiny_data, tmp_path / "sasrec", "sasrec", **short))
    baseline.run("item_knn", fitted(tiny_data, tmp_path / "knn", "item_knn", max_his=6))
    before = content(tmp_path)
    for folder, name, changes, told in (
        ("sasrec", "popularity", {}, "recommender is 'popularity' here and 'sasrec' there"),
        ("knn", "popularity", {}, "recommender is 'popularity' here and 'item_knn' there"),
        ("knn", "item_knn", {"max_his": 5}, "max_his is 5 here and 6 there"),
    ):
        with pytest.raises(UserError, match=rf"{told}.*another --output_dir, or remove what is there"):
            baseline.run(name, fitted(tiny_data, tmp_path / folder, name, **changes))
    manifest = tmp_path / "knn" / "best" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"data hash": "', '"data hash": "other'))
    with pytest.raises(UserError, match="data hash is"):
        baseline.run("item_knn", fitted(tiny_data, tmp_path / "knn", "item_knn", max_his=6))
    assert content(tmp_path) == before | {"knn/best/manifest.json": manifest.read_bytes()}


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_run_of_another_kind_is_not_replaced(tiny_data: Path, tmp_path: Path, which: str) -> None:
    """best/ alone is what `lsvcr convert` writes."""
    checkpoint.save(tmp_path / which, {"w": torch.ones(1)}, {"kind": "stage-one"})
    before = content(tmp_path)
    two = RankSettings(data_path=str(tiny_data), output_dir=str(tmp_path), disable_text=True)
    own = click_settings(tiny_data, tmp_path, "nt", click_samples="sampled")
    for kind, start in {
        "baseline": lambda: baseline.run("popularity", fitted(tiny_data, tmp_path)),
        "stage-two": lambda: rank.run(two),
        "clicks": lambda: clicks.run(own),
    }.items():
        with pytest.raises(
            UserError, match=rf"another kind \(stage-one there, {kind} here\): choose another --output_dir"
        ):
            start()
    assert content(tmp_path) == before


def test_two_runs_in_one_folder_are_refused(tiny_data: Path, tmp_path: Path) -> None:
    two = RankSettings(data_path=str(tiny_data), output_dir=str(tmp_path), disable_text=True)
    own = click_settings(tiny_data, tmp_path, "nt", click_samples="sampled")
    with run_lock(tmp_path):
        for start in (
            lambda: baseline.run("popularity", fitted(tiny_data, tmp_path)),
            lambda: rank.run(replace(two, resume=False)),
            lambda: clicks.run(own),
        ):
            with pytest.raises(UserError, match="another run is training in .*: wait for it or end it"):
                start()
    assert content(tmp_path) == {}
    baseline.run("popularity", fitted(tiny_data, tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text())["model"] == "popularity"


def test_a_file_in_the_folders_place_is_told(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out, told in (
        ("file", "is a file: use another --output_dir"),
        ("file/run", "a parent of it is a file"),
    ):
        with pytest.raises(UserError, match=told):
            baseline.run("popularity", fitted(tiny_data, tmp_path / out))


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"patience": 0}, "--patience 0 must be above 0"),
        ({"warmup_ratio": 1.5}, "--warmup_ratio 1.5 must be between 0 and 1"),
    ],
)
def test_numbers_of_a_training_in_epochs(tiny_data: Path, tmp_path: Path, changes: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        baseline.run("sasrec", fitted(tiny_data, tmp_path, "sasrec", **changes))
