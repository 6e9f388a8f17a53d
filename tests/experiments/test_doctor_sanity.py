"""The scorers of known result: their expectation, and that a broken dataset or evaluator does not give it."""

import itertools
import shutil

import numpy as np
import pytest

from lsvcr.data.rank import RankData
from lsvcr.data.store import open_dataset
from lsvcr.evaluation import evaluator
from lsvcr.evaluation.counting import Counts
from lsvcr.experiments import doctor_sanity
from lsvcr.schema import Task


@pytest.mark.parametrize(("n", "p"), [(4, 1), (5, 2), (12, 3), (12, 1), (3, 3), (1, 1)])
def test_chance_is_the_mean_over_all_orders(n, p):
    """Every placement of p positives among n places, each as likely."""
    discount = 1 / np.log2(np.arange(2, n + 2)) * (np.arange(n) < 10)
    ideal = discount[: min(p, 10)].sum()
    places = [np.array(places) for places in itertools.combinations(range(n), p)]
    found = doctor_sanity._chance(np.array([n]), np.array([p]))
    assert found["ndcg@10"][0] == pytest.approx(np.mean([discount[own].sum() / ideal for own in places]))
    assert found["recall@10"][0] == pytest.approx(np.mean([(own < 10).mean() for own in places]))
    best = [1 / (own.min() + 1) if own.min() < 10 else 0 for own in places]
    assert found["mrr@10"][0] == pytest.approx(np.mean(best))


def test_an_oracle_needs_its_targets_among_the_candidates(tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    target = np.load(data / "samples/rec.test.npy")["video"][2]
    lists = np.load(data / "candidates/rec.test.npy")
    lists[2][lists[2] == target] = target % 32 + 1
    np.save(data / "candidates/rec.test.npy", lists)
    ok = {
        (row["task"], row["protocol"], row["scorer"]): row["ok"]
        for row in doctor_sanity.sanity(open_dataset(data))
    }
    assert not ok["rec", "sampled", "oracle"] and not ok["rec", "sampled", "constant"]
    assert ok["rec", "full", "oracle"] and ok["comm_rank", "sampled", "oracle"]


@pytest.mark.parametrize(("name", "task"), [("count_catalogue", "rec"), ("count_listed", "comm_rank")])
def test_an_evaluator_that_is_off_by_one_is_noticed(name, task, tiny_dataset, monkeypatch):
    right = getattr(evaluator, name)

    def wrong(*arguments):
        counts = right(*arguments)
        return Counts(counts.higher + 1, counts.tied)

    monkeypatch.setattr(evaluator, name, wrong)
    full = [row for row in doctor_sanity.sanity(tiny_dataset) if row["protocol"] == "full"]
    assert {row["task"] for row in full if not row["ok"]} == {task}


def test_large_test_splits_are_looked_at_in_part(tiny_dataset, monkeypatch):
    monkeypatch.setattr(doctor_sanity, "ROWS", 9)
    monkeypatch.setattr(doctor_sanity, "TELLABLE", 1)
    found = doctor_sanity.sanity(tiny_dataset)
    assert all(row["ok"] for row in found)
    constant, oracle = ([row["rows"] for row in found if row["scorer"] == s] for s in ("constant", "oracle"))
    assert constant == [9] * 4
    videos = RankData(tiny_dataset, Task.COMM_RANK, "test").samples.video[:9]
    assert oracle[:2] == [9, 9] and oracle[2:] == [len(set(videos.tolist()))] * 2 and oracle[2] < 9
    monkeypatch.setattr(doctor_sanity, "SCORES", 5 * tiny_dataset.n_videos)
    assert len(doctor_sanity.FirstRows(tiny_dataset, Task.REC)) == 5
