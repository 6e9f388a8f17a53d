"""`lsvcr export` of HLLM light: what a bundle answers is what the run answers, or a sentence and no bundle."""

import shutil
from pathlib import Path

import pytest

from lsvcr.export.bundle import export
from lsvcr.schema import Split, Task
from lsvcr.serving.runtime import Recommender
from lsvcr.utils.errors import UserError
from tests.contract.small import embed_items
from tests.export.checkpoints import Place

SMALL = {"max_his": 5, "hidden": 16, "inner": 24, "heads": 2, "report_to": "none", "num_train_epochs": 1}


@pytest.fixture
def place(tiny_data: Path, tmp_path: Path) -> Place:
    """The tiny world with item vectors."""
    data = shutil.copytree(tiny_data, tmp_path / "data")
    embed_items(data)
    return Place(data, tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_id": True, "positions": "start", "activation": "relu"},
        {"norm": "last", "positions": "none", "layers": 1},
    ],
)
def test_a_bundle_answers_as_its_run(place: Place, options: dict) -> None:
    run = place.baseline("hllm_light", "run", **SMALL, time_buckets="none", **options)
    out = place.root / "bundle"
    found = export(place.settings(run, out=str(out)))["verified"]["rec"]
    assert found["rows"] == len(place.dataset.samples(Task.REC, Split.TEST)) > 10
    assert found["max_difference"] < 1e-5 and not found["other_top_10_but_for_rounded_rows"]
    assert len(Recommender.load(out).recommend([1, 2], k=5).items) == 5


def test_a_run_that_reads_times_is_refused(place: Place) -> None:
    run = place.baseline("hllm_light", "run", **SMALL)
    with pytest.raises(UserError, match="reads the times of events.*--time_buckets none"):
        export(place.settings(run, out=str(place.root / "bundle")))
    assert not (place.root / "bundle").exists()
