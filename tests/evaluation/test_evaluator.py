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
from lsvcr.evaluation.lists import LIST_METRICS
from lsvcr.evaluation.metrics import DEFAULT_METRICS, METRICS
from lsvcr.evaluation.protocol import FULL, Protocol, draw
from lsvcr.evaluation.result import Result, same_protocol, table
from lsvcr.schema import Split, Task
from lsvcr.utils.errors import UserError
from tests.evaluation.eval_world import (
    USERS,
    Blurred,
    Coarse,
    Constant,
    N,
    Oracle,
    write_world,
)
from tests.rank_world import World

MANY = (
    *(f"{word}@{k}" for word in METRICS for k in (1, 3, 10)),
    *(f"{word}@{k}" for word in LIST_METRICS for k in (1, 7, 60)),
)
"""Every metric; the last K is larger than the catalogue."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_world(tmp_path_factory.mktemp("world"))


METRICS_AT_5 = tuple(f"{word}@5" for word in METRICS)


def data(dataset: Dataset, task: Task = Task.REC) -> RankData:
    return RankData(dataset, task, Split.TEST)


def same_to_the_last_digit(one: dict[str, Result], other: dict[str, Result]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].values.keys() == other[name].values.keys()
        for metric, values in one[name].values.items():
            assert np.array_equal(values, other[name].values[metric]), (name, metric)
        assert one[name].overall == other[name].overall


def test_constant_scorer_gets_chance_level_wherever_the_target_sits(dataset: Dataset) -> None:
    """Targets are spread over the catalogue; in the stored lists they come first."""
    results = evaluate(
        Constant(N), data(dataset), {"full": FULL, "sampled": Protocol("sampled")}, metrics=METRICS_AT_5
    )
    for name, candidates in (("full", N), ("sampled", 10)):
        chance = {
            "recall@5": 5 / candidates,
            "hr@5": 5 / candidates,
            "precision@5": 1 / candidates,
            "ndcg@5": sum(1 / np.log2(r + 1) for r in range(1, 6)) / candidates,
            "mrr@5": sum(1 / r for r in range(1, 6)) / candidates,
            "map@5": sum(1 / r for r in range(1, 6)) / candidates,
        }
        assert results[name].values.keys() == chance.keys()
        for metric, value in chance.items():
            assert results[name].values[metric] == pytest.approx(np.full(USERS, value)), (name, metric)


def test_oracle_gets_one(dataset: Dataset) -> None:
    best = data(dataset).samples.video
    protocols = {"a": FULL, "b": Protocol("sampled", 5)}
    names = (*DEFAULT_METRICS, "hr@1", "hr@10", "map@1", "map@10", "precision@1")
    for result in evaluate(Oracle(best, N), data(dataset), protocols, metrics=names).values():
        assert all((values == 1).all() for values in result.values.values())
    tenth = evaluate(Oracle(best, N), data(dataset), metrics=("precision@10",))["full"]
    assert tenth.values["precision@10"] == pytest.approx(np.full(USERS, 1 / 10))


@pytest.mark.parametrize("scorer", [Blurred(N), Coarse(N), Constant(N)], ids=lambda s: type(s).__name__)
def test_batch_size_and_chunk_change_no_bit(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, scorer: Constant
) -> None:
    monkeypatch.setattr(evaluator, "BLOCK", 4)
    both = {"full": FULL, "sampled": Protocol("sampled"), "seen": replace(FULL, filter_seen=True)}
    first = evaluate(scorer, data(dataset), both, metrics=MANY)
    for batch_size, chunk in ((1, 1), (3, 7), (8, 1000), (30, 13)):
        again = evaluate(scorer, data(dataset), both, metrics=MANY, batch_size=batch_size, chunk=chunk)
        same_to_the_last_digit(first, again)


@pytest.mark.parametrize("kind", [Blurred, Coarse])
def test_the_order_of_candidates_changes_no_bit(
    dataset: Dataset, tmp_path: Path, kind: type[Blurred]
) -> None:
    """The same videos under other numbers, and the stored lists shuffled."""
    rng = np.random.default_rng(3)
    numbers = np.concatenate([[0], rng.permutation(N) + 1])
    other = write_world(tmp_path, numbers, order=5)
    both = {"full": FULL, "sampled": Protocol("sampled"), "seen": replace(FULL, filter_seen=True)}
    one = evaluate(kind(N), data(dataset), both, metrics=MANY)
    two = evaluate(kind(N, np.argsort(numbers)), data(other), both, metrics=MANY)
    same_to_the_last_digit(one, two)
    comments = [
        evaluate(Constant(3 * N), data(world, Task.COMM_RANK), {"s": Protocol("sampled")})
        for world in (dataset, other)
    ]
    same_to_the_last_digit(*comments)


class Scored:
    """The scores of another model, as one without vectors gives them."""

    def __init__(self, model: Blurred | Coarse) -> None:
        self.model = model

    def catalogue_scores(self, batch: RankBatch) -> torch.Tensor:
        return self.model.user_vectors(batch).double() @ self.model.item_vectors().double().T


@pytest.mark.parametrize("kind", [Blurred, Coarse])
def test_scores_of_a_model_without_vectors_rank_like_vectors(
    dataset: Dataset, kind: type[Blurred] | type[Coarse]
) -> None:
    """All protocols, and metrics of lists; coarse scores tie by the dozen."""
    rows = RankData(dataset, Task.REC, Split.TEST)
    protocols = {"full": FULL, "unseen": Protocol("full", filter_seen=True), "sampled": Protocol("sampled")}
    metrics = ("ndcg@10", "recall@3", "mrr@10", "coverage@5", "gini@5", "novelty@5", "arp@5")
    model = kind(N)
    made = [
        evaluate(scorer, rows, protocols, metrics=metrics, batch_size=batch, chunk=chunk)
        for scorer, batch, chunk in ((model, 7, 9), (Scored(model), 11, 5), (Scored(model), 300, 4096))
    ]
    for name, wanted in made[0].items():
        for other in (made[1][name], made[2][name]):
            assert other.overall == wanted.overall
            assert all(np.array_equal(other.values[m], wanted.values[m]) for m in wanted.values)


def test_rows_without_positives_are_counted_never_nan(dataset: Dataset) -> None:
    """One row has no positive; in two more the positive is not among the stored candidates, or there are none."""
    results = evaluate(
        Constant(3 * N),
        data(dataset, Task.COMM_RANK),
        {"full": FULL, "sampled": Protocol("sampled")},
        metrics=tuple(name for name in MANY if name.partition("@")[0] in METRICS),
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


def test_slices_by_length_of_history_and_comments(tmp_path: Path) -> None:
    """Whole histories count, also where a model is shown less; each border belongs to the longer side."""
    shown = [(0, 0), (9, 9), (10, 10), (19, 9), (20, 30)]
    videos = [[1 + v % 3 for v in range(watched + 1)] for watched, _ in shown]
    comments = [[(1, step) for step in range(made)] for _, made in shown]
    rec = [(u + 1, watched, made, 1) for u, (watched, made) in enumerate(shown)]
    dataset = World(3, videos, comments, [1, 2, 3], rec={Split.TEST: rec}).write(tmp_path)
    parts = evaluate(Constant(3), RankData(dataset, Task.REC, Split.TEST, max_videos=2))["full"].slices
    assert {name: mask.astype(int).tolist() for name, mask in parts.items()} == {
        "cold": [0, 0, 0, 0, 0],
        "history_short": [1, 1, 0, 0, 0],
        "history_medium": [0, 0, 1, 1, 0],
        "history_long": [0, 0, 0, 0, 1],
        "comments_poor": [1, 1, 0, 1, 0],
        "comments_rich": [0, 0, 1, 0, 1],
    }


def test_slices_leave_out_rows_without_positives(dataset: Dataset) -> None:
    result = evaluate(Constant(3 * N), data(dataset, Task.COMM_RANK))["full"]
    assert {len(mask) for mask in result.slices.values()} == {USERS - 1}
    assert result.slices["history_short"].all() and result.slices["comments_poor"].all()


def test_metrics_of_lists_need_the_whole_catalogue(dataset: Dataset) -> None:
    for task, protocol in ((Task.COMM_RANK, FULL), (Task.REC, Protocol("sampled"))):
        with pytest.raises(UserError, match="coverage@5: .*on Rec under the protocol full"):
            evaluate(Constant(3 * N), data(dataset, task), {"x": protocol}, metrics=("ndcg@5", "coverage@5"))
    results = evaluate(
        Constant(N),
        data(dataset),
        {"full": FULL, "sampled": Protocol("sampled")},
        metrics=("ndcg@5", "arp@5"),
    )
    assert [list(result.values) for result in results.values()] == [["ndcg@5", "arp@5"], ["ndcg@5"]]
    with pytest.raises(UserError, match="did you mean coverage"):
        evaluate(Constant(N), data(dataset), metrics=("covrage@5",))


def test_figures_of_all_rows_have_no_interval_and_no_slices(dataset: Dataset) -> None:
    result = evaluate(Blurred(N), data(dataset), metrics=("coverage@5", "gini@5"))["full"]
    summary = result.summary()
    assert summary["metrics"]["coverage@5"] == {"value": result.overall["coverage@5"], "interval": None}
    assert summary["rows"] == USERS and result.mean("gini@5") == result.overall["gini@5"]
    assert summary["slices"]["cold"]["metrics"] == {}
    with pytest.raises(UserError, match="gini@5 was not measured"):
        result.mean("gini@5", "cold")


@pytest.mark.parametrize("task", list(Task))
def test_drawn_rows_have_the_values_they_have_among_all(dataset: Dataset, task: Task) -> None:
    scorer = Blurred(N if task is Task.REC else 3 * N)
    protocols = {"full": FULL, "sampled": Protocol("sampled")}
    drawn = draw(USERS, 11, 5, Split.TEST)
    assert drawn is not None and len(drawn.rows) == 11 and drawn.about == "11 of 30 rows, seed 5"
    whole = evaluate(scorer, data(dataset, task), protocols)
    some = evaluate(scorer, data(dataset, task), protocols, drawn=drawn, batch_size=4)
    for name, result in some.items():
        assert result.fingerprint.split == "test (11 of 30 rows, seed 5)"
        here = np.isin(whole[name].rows, drawn.rows)
        assert np.array_equal(result.rows, whole[name].rows[here])
        assert result.rows_without_positives == 11 - here.sum()
        for metric, values in result.values.items():
            assert np.array_equal(values, whole[name].values[metric][here]), metric
        for part, mask in result.slices.items():
            assert np.array_equal(mask, whole[name].slices[part][here])
    assert draw(USERS, 0, 5, Split.TEST) is None and draw(USERS, USERS, 5, Split.TEST) is None


def test_lists_of_drawn_rows_are_measured_against_their_own_targets(dataset: Dataset) -> None:
    drawn = draw(USERS, 11, 5, Split.TEST)
    assert drawn is not None
    both = [
        evaluate(Blurred(N), data(dataset), metrics=("arp@5", "popularity_bias@5"), drawn=d)["full"]
        for d in (None, drawn)
    ]
    counts, targets = dataset.train_counts(), data(dataset).samples.video[drawn.rows]
    assert np.array_equal(both[1].values["arp@5"], both[0].values["arp@5"][drawn.rows])
    expected = both[1].values["arp@5"] / counts[targets].mean()
    assert both[1].values["popularity_bias@5"] == pytest.approx(expected)


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
