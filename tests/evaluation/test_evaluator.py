"""The evaluator on hand-made datasets: exactness, protocols, rows that cannot be answered."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lsvcr.data.rank import RankBatch, RankData
from lsvcr.data.store import Dataset
from lsvcr.evaluation import evaluator
from lsvcr.evaluation.evaluator import evaluate
from lsvcr.evaluation.protocol import FULL, Protocol
from lsvcr.evaluation.result import Result, same_protocol, table
from lsvcr.schema import Split, Task
from lsvcr.utils.errors import UserError
from tests.rank_world import World

N, USERS = 40, 30


class Constant:
    """Scores everything alike."""

    def __init__(self, items: int) -> None:
        self.items = items

    def user_vectors(self, batch: RankBatch) -> torch.Tensor:
        return torch.ones(len(batch), 1)

    def item_vectors(self) -> torch.Tensor:
        return torch.ones(self.items + 1, 1)


class Oracle:
    """Knows each row's best item: item vectors are one-hot."""

    def __init__(self, best: np.ndarray, items: int) -> None:
        self.best, self.items = best, items

    def user_vectors(self, batch: RankBatch) -> torch.Tensor:
        return torch.eye(self.items + 1)[self.best[batch.rows]]

    def item_vectors(self) -> torch.Tensor:
        return torch.eye(self.items + 1)


class Blurred:
    """Random vectors by user history and item, through a network whose rounding depends on the batch's shape."""

    def __init__(self, items: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(items + 1, 24, generator=generator)
        self.layer = torch.randn(24, 24, generator=generator)

    def user_vectors(self, batch: RankBatch) -> torch.Tensor:
        return torch.tanh(self.table[batch.video_ids] @ self.layer).mean(1)

    def item_vectors(self) -> torch.Tensor:
        return self.table


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """USERS users with 4 videos each; test targets spread over the catalogue; 3 comments a video, some rows bare."""
    rng = np.random.default_rng(0)
    videos = [[int(v) for v in rng.choice(N, 4, replace=False) + 1] for _ in range(USERS)]
    comments = [[(1, 0), (4, 1)] if u % 2 else [] for u in range(USERS)]
    video_of = [v for v in range(1, N + 1) for _ in range(3)]
    rec = [(u + 1, 3, 0, videos[u][3]) for u in range(USERS)]
    watched = [(u + 1, 4, len(comments[u]), u + 1) for u in range(USERS)]
    positives = [
        [] if u == 7 else [3 * u + 1, 3 * u + 3] if u % 3 == 0 else [3 * u + 2] for u in range(USERS)
    ]
    others = [list(range(3 * u + 1, 3 * u + 4)) for u in range(USERS)]
    others[4] = [13, 15]  # the positive, 14, is not among them
    others[5] = []
    stored = [
        [t, *(int(v) for v in rng.permutation([v for v in range(1, N + 1) if v != t])[:9])] for *_, t in rec
    ]
    return World(
        N,
        videos,
        comments,
        video_of,
        rec={Split.TEST: rec},
        comm_rank={Split.TEST: watched},
        positives={Split.TEST: positives},
        candidates={(Task.REC, Split.TEST): stored, (Task.COMM_RANK, Split.TEST): others},
        counts=[v % 10 for v in range(1, N + 1)],
        options={"candidates": 10},
    ).write(tmp_path_factory.mktemp("world"))


def data(dataset: Dataset, task: Task = Task.REC) -> RankData:
    return RankData(dataset, task, Split.TEST)


def test_constant_scorer_gets_chance_level(dataset: Dataset) -> None:
    results = evaluate(Constant(N), data(dataset), {"full": FULL, "sampled": Protocol("sampled")})
    assert results["full"].values["recall@10"] == pytest.approx(np.full(USERS, 10 / N))
    assert results["sampled"].values["recall@5"] == pytest.approx(np.full(USERS, 5 / 10))


def test_oracle_gets_one(dataset: Dataset) -> None:
    best = data(dataset).samples.video
    for result in evaluate(Oracle(best, N), data(dataset), {"a": FULL, "b": Protocol("sampled", 5)}).values():
        assert all((values == 1).all() for values in result.values.values())


def test_batch_size_and_chunk_change_no_bit(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "BLOCK", 4)
    both = {"full": FULL, "sampled": Protocol("sampled"), "seen": replace(FULL, filter_seen=True)}
    first = evaluate(Blurred(N), data(dataset), both)
    for batch_size, chunk in ((1, 1), (3, 7), (8, 1000), (30, 13)):
        again = evaluate(Blurred(N), data(dataset), both, batch_size=batch_size, chunk=chunk)
        for name in both:
            for metric, values in first[name].values.items():
                assert np.array_equal(values, again[name].values[metric])


def test_rows_without_positives_are_counted_never_nan(dataset: Dataset) -> None:
    """One row has no positive; in two more the positive is not among the stored candidates, or there are none."""
    results = evaluate(
        Constant(3 * N), data(dataset, Task.COMM_RANK), {"full": FULL, "sampled": Protocol("sampled")}
    )
    full, sampled = results["full"], results["sampled"]
    assert (full.rows_without_positives, full.positives_not_listed) == (1, 0)
    assert (sampled.rows_without_positives, sampled.positives_not_listed) == (1, 2)
    assert 7 not in full.rows
    assert len(full.rows) == USERS - 1
    for result in results.values():
        assert all(np.isfinite(values).all() for values in result.values.values())
        figures = result.summary()["metrics"].values()
        assert all(np.isfinite([f["value"], *f["interval"]]).all() for f in figures)
    # Three comments of one score: the first place is right with probability 1/3 for each positive.
    assert full.values["recall@1"] == pytest.approx(np.full(USERS - 1, 1 / 3))
    assert sampled.values["recall@10"][[4, 5]].tolist() == [0, 0]


def test_fewer_candidates_keep_the_positives(dataset: Dataset) -> None:
    results = evaluate(Constant(N), data(dataset), {"five": Protocol("sampled", 5)})
    assert results["five"].values["recall@1"] == pytest.approx(np.full(USERS, 1 / 5))
    assert results["five"].positives_not_listed == 0
    multi = evaluate(Constant(3 * N), data(dataset, Task.COMM_RANK), {"two": Protocol("sampled", 2)})["two"]
    assert multi.positives_not_listed == 2


def test_more_candidates_than_stored_is_refused(dataset: Dataset) -> None:
    with pytest.raises(UserError, match="--candidates 11"):
        evaluate(Constant(N), data(dataset), {"x": Protocol("sampled", 11)})


def test_seen_filter_takes_the_history_out(dataset: Dataset) -> None:
    """Every user has seen three other videos: 37 remain in the catalogue, and fewer of the stored ones."""
    seen = {
        "full": replace(FULL, filter_seen=True),
        "sampled": replace(Protocol("sampled"), filter_seen=True),
    }
    results = evaluate(Constant(N), data(dataset), seen)
    assert results["full"].values["recall@1"] == pytest.approx(np.full(USERS, 1 / 37))
    stored = dataset.candidates(Task.REC, Split.TEST)
    history = data(dataset).seen_videos(np.arange(USERS))
    for row in range(USERS):
        own = history.items[history.starts[row] : history.starts[row] + 3]
        left = len(set(stored.row(row)) - set(own))
        assert results["sampled"].values["recall@1"][row] == pytest.approx(1 / left)


def test_cold_slice_and_intervals(dataset: Dataset) -> None:
    result = evaluate(Blurred(N), data(dataset))["full"]
    targets = data(dataset).samples.video
    cold = dataset.train_counts()[targets] < 5
    assert result.slices["cold"].tolist() == cold.tolist()
    summary = result.summary()
    part = summary["slices"]["cold"]
    assert part["rows"] == cold.sum()
    assert part["metrics"]["ndcg@10"]["value"] == pytest.approx(result.values["ndcg@10"][cold].mean())
    low, high = summary["metrics"]["recall@10"]["interval"]
    assert low <= summary["metrics"]["recall@10"]["value"] <= high
    assert summary == evaluate(Blurred(N), data(dataset))["full"].summary()


def test_an_empty_slice_has_no_value(dataset: Dataset) -> None:
    result = evaluate(Constant(N), data(dataset))["full"]
    empty = replace(result, slices={"none": np.zeros(USERS, dtype=bool)}).summary()["slices"]["none"]
    assert empty["rows"] == 0
    assert empty["metrics"]["recall@1"] == {"value": None, "interval": None}


def test_one_table_never_mixes_protocols(dataset: Dataset) -> None:
    results = evaluate(Constant(N), data(dataset), {"full": FULL, "sampled": Protocol("sampled")})
    with pytest.raises(UserError, match="candidates"):
        table(results, ("ndcg@10",))
    same = {"a": results["full"], "b": results["full"]}
    assert table(same, ("recall@10",)) == [["", "recall@10"], ["a", "0.2500"], ["b", "0.2500"]]
    other = replace(results["full"].fingerprint, data_hash="another")
    with pytest.raises(UserError, match="data_hash"):
        same_protocol({"a": results["full"], "b": replace(results["full"], fingerprint=other)})


def test_nan_vectors_and_empty_splits_raise(dataset: Dataset, tmp_path: Path) -> None:
    broken = Constant(N)
    broken.item_vectors = lambda: torch.full((N + 1, 1), torch.nan)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="NaN"):
        evaluate(broken, data(dataset))
    with pytest.raises(UserError, match="no Rec samples"):
        evaluate(Constant(N), RankData(dataset, Task.REC, Split.VAL), {"full": FULL})


def test_fingerprint_says_what_was_done(dataset: Dataset) -> None:
    results: dict[str, Result] = evaluate(
        Constant(N),
        data(dataset),
        {"full": FULL, "seen": replace(FULL, filter_seen=True), "five": Protocol("sampled", 5)},
    )
    digests = {result.fingerprint.digest for result in results.values()}
    assert len(digests) == 3
    assert results["five"].fingerprint.candidates == "stored, at most 5"
    assert results["full"].fingerprint.data_hash == dataset.data_hash
