"""The comparison with other libraries: what it measures by hand numbers, and our side of it from end to end."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lsvcr.data.store import open_dataset

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts" / "bench"


@pytest.fixture
def peers_data(monkeypatch):
    """The benchmark's module, whose neighbours are found as when it is started."""
    monkeypatch.syspath_prepend(BENCH)
    return import_module("peers_data")


@pytest.fixture
def events():
    """Two users, 12 items (7 to 18), some at the same second: user 4's last is 16, user 9's is 8."""
    user_4 = [(4, item, 100) for item in (7, 8, 9, 10, 11)] + [(4, 15, 200), (4, 16, 200)]
    user_9 = [(9, item, time) for time, item in enumerate((18, 17, 14, 13, 12, 8))]
    return pl.DataFrame(user_9 + user_4, schema=["user", "item", "time"], orient="row")


def test_the_split_is_leave_last_in_the_order_of_the_rows(peers_data, events, tmp_path):
    folder = peers_data.split(events, tmp_path / "two")
    rows = {part: pl.read_csv(folder / f"{part}.csv").rows() for part in ("train", "val", "test")}
    assert [row[:2] for row in rows["test"]] == [(4, 16), (9, 8)]
    assert [row[:2] for row in rows["val"]] == [(4, 15), (9, 12)]
    # Events of one second are a millisecond apart, in the order in which they came.
    assert rows["train"][:5] == [(4, item, 100_000 + place) for place, item in enumerate(range(7, 12))]
    # Our own command reads the same: the test's history is all that came before, within the same second too.
    dataset = open_dataset(folder / "prepared")
    samples = dataset.samples("rec", "test")
    histories = samples.video_end - dataset.video_events.offsets[samples.user]
    assert histories.tolist() == [6, 5]


def test_scores_of_another_system_are_judged_by_hand_numbers(peers_data, events, tmp_path):
    dataset = open_dataset(peers_data.split(events, tmp_path / "two") / "prepared")
    assert (dataset.n_users, dataset.n_videos) == (2, 12)
    # Item 7 is index 1. User 4: two seen items and one unseen stand before 16 (index 10). User 9: 8 (index 2) is not
    # among the first ten while 17 and 18 (11 and 12), which are seen, stand before it.
    lists = np.array([[1, 2, 6, 10, 3, 4, 5, 7, 8, 9], [12, 11, 1, 3, 4, 5, 7, 9, 10, 6]])
    scores = np.zeros((2, 12), np.float32)
    np.put_along_axis(scores, lists - 1, np.arange(10, 0, -1, dtype=np.float32)[None], axis=1)
    found = peers_data.figures_of(peers_data.judge(scores, dataset))
    # Seen of user 9: indices 12, 11, 8, 7, 6. Before it stay 1, 3, 4, 5, 9, 10; none is tied with it that is unseen.
    expected = {
        "ndcg10": (1 / np.log2(5) + 0) / 2,
        "recall10": (1 + 0) / 2,
        "mrr10": (1 / 4 + 0) / 2,
        "ndcg10_filtered": (1 / np.log2(3) + 1 / np.log2(8)) / 2,
        "recall10_filtered": 1.0,
        "mrr10_filtered": (1 / 2 + 1 / 7) / 2,
    }
    assert found == pytest.approx(expected)


def test_scores_that_do_not_fit(peers_data, events, tmp_path):
    dataset = open_dataset(peers_data.split(events, tmp_path / "two") / "prepared")
    for wrong in (np.zeros((2, 4)), np.full((2, 12), np.nan)):
        with pytest.raises(ValueError, match="must be finite and \\(2, 12\\)"):
            peers_data.judge(wrong, dataset)


@pytest.mark.slow
def test_our_side_runs_and_reports(tmp_path):
    words = ["--quick", "--json", "--models", "sasrec", "--work", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(BENCH / "peers.py"), *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    figures = found["figures"]
    assert found["bench"] == "peers" and figures["ours_sasrec_targets_per_s"] > 0
    assert figures["ours_sasrec_users_per_s"] > 0
    assert 0 <= figures["ours_sasrec_ndcg10"] <= figures["ours_sasrec_recall10"] <= 1
    # What a user has seen can only stand before the target.
    assert figures["ours_sasrec_ndcg10"] <= figures["ours_sasrec_ndcg10_filtered"]
    assert not (tmp_path / "peers-env").exists()
