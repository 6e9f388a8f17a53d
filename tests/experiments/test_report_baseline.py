"""The page about a run of `lsvcr train`."""

from pathlib import Path

import pytest

from lsvcr.baselines.registry import find
from lsvcr.experiments.report import write_report
from lsvcr.settings import ReportSettings
from lsvcr.training.baseline import run
from lsvcr.utils.io import read_json, write_json
from tests.contract.small import small
from tests.training.conftest import fresh_accelerator

__all__ = ["fresh_accelerator"]

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def test_a_trained_and_a_fitted_recommender_have_pages(tiny_data: Path, tmp_path: Path) -> None:
    for name, said in (("sasrec", "finished: 2 of at most 2 epochs"), ("popularity", "fitted, not trained")):
        entry, out = find(name), tmp_path / name
        run(name, small(entry, tiny_data, out))
        page = write_report(ReportSettings(run=str(out))).read_text()
        for words in (said, "another recommender", name, "ndcg@10", "Rec", "none (no text vectors)"):
            assert words in page, (name, words)
    assert "nothing is drawn" in (tmp_path / "popularity" / "report.html").read_text()
    # Settings other than the defaults, explained; speeds and curves of the log.
    page = (tmp_path / "sasrec" / "report.html").read_text()
    for words in ("learned positions counted from", "targets_per_second"):
        assert words in page


def test_a_recommender_of_another_version_has_one_too(tiny_data: Path, tmp_path: Path) -> None:
    entry = find("popularity")
    run("popularity", small(entry, tiny_data, tmp_path))
    path = tmp_path / "best" / "manifest.json"
    write_json(path, {**read_json(path), "model": "forgotten"})
    page = write_report(ReportSettings(run=str(tmp_path))).read_text()
    assert "forgotten" in page and "latest videos of a history" in page
