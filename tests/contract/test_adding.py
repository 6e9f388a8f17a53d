"""The recommender that docs/method.md adds is found, trained and measured as it stands there."""

import re
import sys
from pathlib import Path

import pytest

from lsvcr import baselines, cli
from lsvcr.baselines.registry import entries
from lsvcr.utils.io import read_json
from tests.guards.source import ROOT

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def test_the_example_of_the_documents_works(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, section = (ROOT / "docs" / "method.md").read_text().partition("### Adding a recommender")
    code = re.search(r"^```python\n(.*?)^```", section, re.M | re.S)
    assert code is not None
    folder = tmp_path / "baselines"
    folder.mkdir()
    (folder / "markov.py").write_text(code[1])
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "lsvcr.baselines.markov", raising=False)
    assert "markov" in entries()

    out = tmp_path / "run"
    words = f"train markov --data_path {tiny_data} --output_dir {out} --hidden 8 --learning_rate 0.05"
    assert cli.main([*words.split(), "--num_train_epochs", "8", "--report_to", "none"]) == 0
    figures = read_json(out / "metrics.json")
    assert figures["model"] == "markov"
    # A topic has 8 of the 32 videos, and people go through theirs in steps of 3.
    assert figures["protocols"]["full"]["metrics"]["recall@10"]["value"] > 0.9
    assert cli.main(["evaluate", str(out), "--data", str(tiny_data), "--json"]) == 0
    assert cli.main(["table", "--data", str(tiny_data), f"chain={out}", "--json"]) == 0
    sys.modules.pop("lsvcr.baselines.markov")
