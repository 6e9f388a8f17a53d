"""Every formula of grounding against plain loops, and the ranks that come of them against the evaluator."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsvcr.baselines import grounding as formulas
from lsvcr.baselines.generations import Generated
from lsvcr.baselines.grounding_rank import (
    METRICS,
    PROTOCOLS,
    Curve,
    Evidence,
    Exposure,
    Ground,
    chances,
    choose_gammas,
    measure,
    rankings,
    standing,
)
from lsvcr.baselines.grounding_titles import TitleIndex, exact, normalised, validity
from lsvcr.baselines.grounding_vectors import LastTokenEncoder, cosines, distances
from lsvcr.baselines.popularity import popularity
from lsvcr.data.rank import RankData
from lsvcr.data.spans import Spans
from lsvcr.data.store import Dataset
from lsvcr.evaluation.evaluator import evaluate
from lsvcr.evaluation.protocol import Drawn, Protocol
from lsvcr.llm.families import backbone, fingerprint
from lsvcr.llm.loading import load_llm
from lsvcr.schema import Split, Task

COUNTS = np.array([3, 0, 10, 10, 1, 7, 2, 0])
B, N = 6, len(COUNTS)


@pytest.fixture
def evidence() -> Evidence:
    """Six rows over eight videos, of which two share each distance now and then; the last row has no text."""
    rng = np.random.default_rng(5)
    distance = rng.integers(1, 9, (B, N)).astype(np.float64)
    others = rng.integers(0, 5, (B, N)).astype(np.float64)
    places = rng.permuted(np.tile([0.0, 0.0, 2.0, *[math.inf] * (N - 3)], (B, 1)), axis=1)
    return Evidence(
        rows=np.arange(B),
        spoken=np.arange(B) < B - 1,
        distance=distance,
        cosine=rng.random((B, N)),
        dn=formulas.minmax(distance),
        exact=places,
        normalised=places,
        counts=COUNTS,
        popularity=formulas.popularity(COUNTS),
        log_popularity=formulas.log_popularity(COUNTS),
        collaborative=others,
        cn=formulas.minmax(others),
    )


def plain_minmax(row: Any) -> list[float]:
    low, high = min(row), max(row)
    return [(float(value) - low) / (high - low) for value in row]


GOLDEN = {
    "l2": lambda e, b, i, g: -e.distance[b, i],
    "cosine": lambda e, b, i, g: e.cosine[b, i],
    "bigrec_popularity": lambda e, b, i, g: (
        -((1 + plain_minmax(COUNTS / COUNTS.sum())[i]) ** -g) * plain_minmax(e.distance[b])[i]
    ),
    "log_popularity": lambda e, b, i, g: (
        g * plain_minmax([math.log(1 + c) for c in COUNTS])[i] - plain_minmax(e.distance[b])[i]
    ),
    "bigrec_collaborative": lambda e, b, i, g: (
        -((1 + plain_minmax(e.collaborative[b])[i]) ** -g) * plain_minmax(e.distance[b])[i]
    ),
    "add_collaborative": lambda e, b, i, g: (
        g * plain_minmax(e.collaborative[b])[i] - plain_minmax(e.distance[b])[i]
    ),
    "rrf": lambda e, b, i, g: (
        (1 / (60 + plain_rank(-e.distance[b], i)) if e.spoken[b] else 0.0)
        + 1 / (60 + plain_rank(e.collaborative[b], i))
    ),
    "popularity": lambda e, b, i, g: float(COUNTS[i]),
    "collaborative": lambda e, b, i, g: e.collaborative[b, i],
}


def plain_rank(scores: Any, item: int) -> float:
    above = sum(score > scores[item] for score in scores)
    return above + (1 + sum(score == scores[item] for score in scores)) / 2


@pytest.mark.parametrize("gamma", [0.0, 0.37, 5.0])
@pytest.mark.parametrize("name", GOLDEN)
def test_every_formula_against_plain_loops(evidence: Evidence, name: str, gamma: float) -> None:
    scores = rankings(60)[name].scores(evidence, gamma)
    expected = [[GOLDEN[name](evidence, b, i, gamma) for i in range(N)] for b in range(B)]
    np.testing.assert_allclose(scores, expected, rtol=1e-12, atol=1e-15)


def test_all_rankings_but_the_lists_have_a_golden_formula() -> None:
    assert set(rankings(60)) == {*GOLDEN, "exact", "normalised"}


def test_bigrecs_factor_cannot_move_the_first_place_and_the_additive_form_can(evidence: Evidence) -> None:
    ways, first = rankings(60), evidence.distance == evidence.distance.min(axis=1, keepdims=True)
    moved = {}
    for name in ("bigrec_popularity", "bigrec_collaborative", "log_popularity", "add_collaborative"):
        best = ways[name].scores(evidence, 99.0)
        top = best == best.max(axis=1, keepdims=True)
        moved[name] = bool((top & ~first).any())
    assert moved == {
        "bigrec_popularity": False,
        "bigrec_collaborative": False,
        "log_popularity": True,
        "add_collaborative": True,
    }


def test_rows_where_all_are_alike_are_zero_not_nan() -> None:
    assert formulas.minmax(np.full((2, 3), 7.0)).tolist() == [[0.0] * 3] * 2
    assert formulas.popularity(np.zeros(3)).tolist() == [0.0] * 3


TITLES = ["", "Heat", "Tom &amp; Jerry", "heat", "", "Heat", "Amélie", "Matrix, The (1999)"]


def test_an_index_knows_whose_title_it_is() -> None:
    index = TitleIndex(TITLES)
    assert index.titles == ["Amélie", "Heat", "Matrix, The (1999)", "Tom &amp; Jerry", "heat"]
    assert index.title_of.tolist() == [1, 3, 4, -1, 1, 0, 2]
    assert index.videos("Heat", exact).tolist() == [0, 4]
    assert index.videos(" “HEAT” ", normalised).tolist() == [0, 2, 4]
    assert index.videos("tom & jerry", normalised).tolist() == [1]
    assert index.videos("ame\u0301lie", normalised).tolist() == [5]
    assert index.videos("tom & jerry", exact).tolist() == [] == index.videos("", normalised).tolist()
    spread = index.spread(np.array([[1.0, 2.0, 3.0, 4.0, 5.0]]), np.array([9.0]))
    assert spread.tolist() == [[2.0, 4.0, 5.0, 9.0, 2.0, 1.0, 3.0]]


def test_beams_take_places_as_in_a_list() -> None:
    index, out = TitleIndex(TITLES), math.inf
    beams = ["nonsense", "Heat", "Heat", "Amélie", ""]
    # Nonsense has the first place, the two called Heat share the next two, its repetition has the fourth.
    assert index.places(beams, exact).tolist() == [1.0, out, out, out, 1.0, 4.0, out]
    assert index.places([], exact).tolist() == [out] * 7


def test_validity_counts_beams() -> None:
    generated = Generated(
        np.arange(3), [["Heat", "heat", "x"], ["", "Amélie", "AMÉLIE"], []], [[0.0] * 3, [0.0] * 3, []]
    )
    found = validity(generated, TitleIndex(TITLES))
    assert (found.rows, found.beams, found.rows_without_title, found.titles) == (3, 6, 2, 2)
    assert found.valid == 3 / 6 and found.valid_normalised == 4 / 6 and found.duplicates == 2 / 6


def test_standing_counts_every_rival_and_knows_a_miss(evidence: Evidence) -> None:
    targets = np.array([0, 1, 2, 3, 4, 5])
    lists = Spans(np.arange(B) * 4, np.full(B, 4), np.array([v for t in targets for v in (t + 1, 7, 8, 6)]))
    lists.items[4 * 5 : 4 * 6] = [1, 2, 3, 4]  # the last row's target is not among its candidates
    for name, way in rankings(60).items():
        scores = way.scores(evidence, 0.5)
        for candidates in (None, lists):
            higher, tied = standing(way, scores, targets, evidence.spoken, candidates)
            for b, target in enumerate(targets):
                among = range(N) if candidates is None else (candidates.items[4 * b : 4 * b + 4] - 1).tolist()
                own = scores[b, target]
                missed = {"empty": not evidence.spoken[b], "unlisted": own == -math.inf, "none": False}
                if missed[way.misses] or target not in among:
                    assert tied[b] == 0, (name, b)
                    continue
                assert tied[b] == sum(scores[b, i] == own for i in among), (name, b)
                if way.misses == "unlisted" and candidates is None:
                    assert higher[b] == -own  # beams before it, of titles or not
                else:
                    assert higher[b] == sum(scores[b, i] > own for i in among), (name, b)


class Vectors:
    """A recommender given by its vectors."""

    def __init__(self, users: Tensor, items: Tensor) -> None:
        self._users, self._items = users, items

    def user_vectors(self, batch: Any) -> Tensor:
        return self._users[batch.rows]

    def item_vectors(self) -> Tensor:
        return self._items


@pytest.fixture
def world(tiny_dataset: Dataset) -> SimpleNamespace:
    """The tiny world's test split; one said title a row; whole-number vectors, so that ties are exact."""
    data = RankData(tiny_dataset, Task.REC, Split.TEST)
    index = TitleIndex(tiny_dataset.titles())
    rng = np.random.default_rng(3)
    vectors = rng.integers(-3, 4, (len(index.titles), 4)).astype(np.float32)
    table = dict(zip(index.titles, vectors, strict=True))
    texts = [[index.titles[row % len(index.titles)]] for row in range(len(data))]
    generated = Generated(np.arange(len(data)), texts, [[0.0]] * len(data))
    items = rng.integers(-2, 3, (tiny_dataset.n_videos + 1, 3)).astype(np.float32)
    users = rng.integers(-2, 3, (len(data), 3)).astype(np.float32)
    ground = Ground(
        data,
        generated,
        index,
        vectors,
        lambda said: np.stack([table[text] for text in said]),
        lambda rows: (users[rows] @ items.T)[:, 1:].astype(np.float64),
    )
    return SimpleNamespace(data=data, ground=ground, other=Vectors(torch.tensor(users), torch.tensor(items)))


def test_results_are_the_evaluators(world: SimpleNamespace) -> None:
    results = measure(world.ground, rankings(60), {}, None)
    scorers = {"collaborative": world.other, "popularity": popularity(world.data.dataset, Task.REC)}
    for name, scorer in scorers.items():
        expected = evaluate(scorer, world.data, PROTOCOLS, metrics=METRICS)
        for protocol, result in results[name].items():
            assert result.fingerprint == expected[protocol].fingerprint
            assert np.array_equal(result.rows, expected[protocol].rows)
            for metric in METRICS:
                np.testing.assert_allclose(
                    result.values[metric], expected[protocol].values[metric], atol=1e-12
                )
            for part, mask in expected[protocol].slices.items():
                assert np.array_equal(result.slices[part], mask)


def test_drawn_rows_have_a_fingerprint_of_their_own(world: SimpleNamespace) -> None:
    ways = {"l2": rankings(60)["l2"]}
    some = Drawn(world.ground.rows, "9 of 24 rows")
    marks = [measure(world.ground, ways, {}, drawn)["l2"]["full"].fingerprint for drawn in (None, some)]
    assert marks[0].split == "test" and marks[1].split == "test (9 of 24 rows)"
    assert marks[0].digest != marks[1].digest


def test_gamma_is_the_smallest_of_the_best_and_curves_are_the_evaluators(world: SimpleNamespace) -> None:
    ways = rankings(60)
    curves = choose_gammas(world.ground, ways)
    assert set(curves) == {name for name, way in ways.items() if way.gammas}
    for name, curve in curves.items():
        values = curve.figures["ndcg@10"]
        best = max(range(len(values)), key=lambda i: (values[i], -i))
        assert curve.chosen == ways[name].gammas[best]
        # The test figure at the chosen gamma, on the same rows, is the curve's highest point.
        result = measure(world.ground, {name: ways[name]}, {name: curve.chosen}, None)[name]["full"]
        assert result.mean("ndcg@10") == pytest.approx(max(values), abs=1e-12)
    # With all weight on the other recommender, the lists are the other's.
    metrics = ("popularity_bias@10", "coverage@10")
    expected = evaluate(world.other, world.data, {"full": Protocol()}, metrics=metrics)["full"]
    alone = Exposure((0.0,), world.ground.counts, world.data.samples.video - 1)
    for _, part in world.ground.blocks():
        alone.add(0, part.collaborative)
    for metric, (value,) in alone.figures().items():
        assert value == pytest.approx(expected.mean(metric), rel=1e-9)


def test_curves_leave_most_exposures_out() -> None:
    grid = formulas.FINE_GAMMAS
    exposure = Exposure(grid, COUNTS, np.array([0]))
    wanted = [gamma for number, gamma in enumerate(grid) if exposure.wants(number)]
    assert wanted[:4] == [0.0, 0.01, 0.02, 0.03] and wanted[-1] == 99.0
    # About as many below 1 as above.
    assert len(wanted) <= 25 and abs(sum(gamma < 1 for gamma in wanted) - len(wanted) / 2) < 2
    assert Curve((0.0,), {"ndcg@10": [0.5]}, 0.0).to_json() == {
        "gamma": [0.0],
        "ndcg@10": [0.5],
        "chosen": 0.0,
    }


def test_chances_share_the_last_place() -> None:
    scores = np.array([[1.0, 1.0, 1.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    assert chances(scores, 1).tolist() == [[0.25] * 4, [1.0, 0.0, 0.0, 0.0]]
    assert chances(scores, 9).tolist() == [[1.0] * 4] * 2


def test_distances_and_cosines_against_plain_sums() -> None:
    rng = np.random.default_rng(0)
    # Large and nearly the same: a shortcut through products would see no difference.
    texts, titles = (1000 + rng.random((count, 5)).astype(np.float32) for count in (3, 1500))
    titles[7] = texts[1]
    found = distances(texts, titles)
    for row, column in ((0, 0), (1, 7), (2, 1499)):
        left, right = texts[row].astype(float), titles[column].astype(float)
        assert found[row, column] == pytest.approx(math.sqrt(sum((left - right) ** 2)), rel=1e-12)
        cosine = float(left @ right) / math.sqrt(float(left @ left) * float(right @ right))
        assert cosines(texts, titles)[row, column] == pytest.approx(cosine, rel=1e-12)
    assert found[1, 7] == 0.0 and (found > 0).sum() == found.size - 1
    assert cosines(np.zeros((1, 2)), np.ones((1, 2))).tolist() == [[0.0]]


def test_a_vector_is_the_last_tokens_state_whatever_stands_beside_it(tmp_path: Path) -> None:
    model, tokenizer = load_llm("tiny-random", dtype=torch.float32)
    encoder = LastTokenEncoder("tiny-random", fingerprint(model), torch.float32)
    texts = ["Heat", "a much longer title than that", "Heat 2"]
    vectors = encoder(texts)
    for text, vector in zip(texts, vectors, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            state = backbone(model)(input_ids=ids).last_hidden_state[0, -1]
        np.testing.assert_allclose(vector, state.numpy(), atol=1e-5)
    kept = encoder.catalogue(texts, tmp_path / "titles")
    assert np.array_equal(kept, vectors)
    stamp = (tmp_path / "titles" / "vectors.npy").stat().st_mtime_ns
    assert np.array_equal(encoder.catalogue(texts, tmp_path / "titles"), vectors)
    assert (tmp_path / "titles" / "vectors.npy").stat().st_mtime_ns == stamp
    # Other titles are read anew.
    assert len(encoder.catalogue(texts[:2], tmp_path / "titles")) == 2
