"""The same generations ranked in many ways over the whole catalogue, each with one gamma, chosen on validation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lsvcr.baselines import grounding as formulas
from lsvcr.baselines.generations import Generated
from lsvcr.baselines.grounding_titles import TitleIndex, exact, normalised
from lsvcr.baselines.grounding_vectors import cosines, distances
from lsvcr.data.people import people_of
from lsvcr.data.rank import RankData
from lsvcr.data.spans import Spans
from lsvcr.evaluation.metrics import DEFAULT_METRICS, compute, single
from lsvcr.evaluation.protocol import FULL, Drawn, Protocol, fingerprint, listed_candidates
from lsvcr.evaluation.result import Result
from lsvcr.evaluation.slices import slices

CHOSEN_BY = "ndcg@10"
"""Validation metric that chooses gamma, under the full protocol; of equal values the smallest gamma."""

METRICS = (
    *DEFAULT_METRICS,
    *(
        f"{word}@{k}"
        for word in ("hr", "ndcg")
        for k in (1, 3, 5, 10, 20)
        if f"{word}@{k}" not in DEFAULT_METRICS
    ),
)
"""What the other recommenders report, and BIGRec's cut-offs."""

PROTOCOLS = {"full": FULL, "sampled": Protocol("sampled")}
TOP = 10
"""Length of the lists that popularity bias and coverage are told of."""

_BLOCK = 4
"""Rows at once: few, so that the arrays of a catalogue stay in the processor's cache (measured: 32 take 1.5 times as
long)."""
_CURVE_POINTS = 25
"""Gammas of a curve at which popularity bias and coverage are computed, which cost more than ranks."""

Collaborative = Callable[[np.ndarray], np.ndarray]
"""Sample numbers (B,) of a split -> another recommender's scores (B, N) of videos 1 ... N."""


@dataclass(frozen=True)
class Evidence:
    """What is known of B rows. (B, N) arrays are float64 over videos 1 ... N.

    Attributes:
        rows: (B,) sample numbers.
        spoken: (B,) bool, false where the best beam is empty.
        distance, cosine: of the best beam's text to each title; a video without a title is as far as the farthest.
        dn: `distance`, min-max normalised by row.
        exact, normalised: places before each video in the beams' lists, infinity = not listed.
        counts: (N,) training interactions.
        popularity, log_popularity: (N,) as in `grounding`.
        collaborative: another recommender's scores; zeros where there is none, and then no ranking asks for them.
        cn: `collaborative`, min-max normalised by row.
    """

    rows: np.ndarray
    spoken: np.ndarray
    distance: np.ndarray
    cosine: np.ndarray
    dn: np.ndarray
    exact: np.ndarray
    normalised: np.ndarray
    counts: np.ndarray
    popularity: np.ndarray
    log_popularity: np.ndarray
    collaborative: np.ndarray
    cn: np.ndarray


@dataclass(frozen=True)
class Ranking:
    """One way to rank.

    Attributes:
        about: its formula, for people.
        scores: evidence and gamma -> (B, N), the higher the better; -inf = not in the list.
        gammas: the grid, empty where there is no gamma.
        collaborative: it needs another recommender's scores.
        misses: rows it cannot rank: `empty` = those whose best beam is empty, `unlisted` = those whose target is in no
            beam, `none`.
    """

    about: str
    scores: Callable[[Evidence, float], np.ndarray]
    gammas: tuple[float, ...] = ()
    collaborative: bool = False
    misses: str = "empty"


def rankings(rrf_k: float) -> dict[str, Ranking]:
    """All ways to rank, by name."""
    fine = formulas.FINE_GAMMAS
    return {
        "exact": Ranking("place of the beam that is the title", lambda e, _: -e.exact, misses="unlisted"),
        "normalised": Ranking("the same but for spelling", lambda e, _: -e.normalised, misses="unlisted"),
        "l2": Ranking("-D, the distance of vectors", lambda e, _: -e.distance),
        "cosine": Ranking("cosine of vectors", lambda e, _: e.cosine),
        "bigrec_popularity": Ranking(
            "-(1 + Pn)^-gamma Dn",
            lambda e, g: formulas.reweighted(e.dn, e.popularity, g),
            formulas.BIGREC_GAMMAS,
        ),
        "log_popularity": Ranking(
            "gamma log(1 + count)n - Dn",
            lambda e, g: formulas.added(e.dn, e.log_popularity, g),
            fine,
        ),
        "bigrec_collaborative": Ranking(
            "-(1 + Cn)^-gamma Dn",
            lambda e, g: formulas.reweighted(e.dn, e.cn, g),
            fine,
            collaborative=True,
        ),
        "add_collaborative": Ranking(
            "gamma Cn - Dn",
            lambda e, g: formulas.added(e.dn, e.cn, g),
            fine,
            collaborative=True,
        ),
        "rrf": Ranking(
            f"1 / ({rrf_k:g} + rank by D) + 1 / ({rrf_k:g} + rank by C)",
            lambda e, _: _fused(e, rrf_k),
            collaborative=True,
            misses="none",
        ),
        "popularity": Ranking(
            "training interactions alone",
            lambda e, _: np.tile(e.counts.astype(np.float64), (len(e.rows), 1)),
            misses="none",
        ),
        "collaborative": Ranking(
            "C, the other recommender alone", lambda e, _: e.collaborative, collaborative=True, misses="none"
        ),
    }


def _fused(evidence: Evidence, k: float) -> np.ndarray:
    by_distance = formulas.ranks(-evidence.distance)
    by_distance[~evidence.spoken] = np.inf
    return formulas.fused([by_distance, formulas.ranks(evidence.collaborative)], k)


class Ground:
    """The evidence of one split.

    Args:
        data: batches of the split.
        generated: what was said for (some of) its rows.
        index: of the titles.
        title_vectors: (T, h) of the distinct titles.
        encode: vectors (n, h) of texts, by the encoder of the titles.
        collaborative: another recommender's scores, or None.
    """

    def __init__(
        self,
        data: RankData,
        generated: Generated,
        index: TitleIndex,
        title_vectors: np.ndarray,
        encode: Callable[[list[str]], np.ndarray],
        collaborative: Collaborative | None,
    ) -> None:
        self.data, self.rows = data, generated.rows
        self._texts, self._index, self._title_vectors = generated.texts, index, title_vectors
        self._collaborative = collaborative
        first = [exact(texts[0]) if texts else "" for texts in generated.texts]
        said = sorted(set(first) - {""})
        places = {text: place for place, text in enumerate(said)}
        self._which = np.array([places.get(text, -1) for text in first], dtype=np.int64)
        self._vectors = encode(said) if said else np.zeros((1, title_vectors.shape[1]), dtype=np.float32)
        self.counts = np.asarray(data.dataset.train_counts()[1:])

    def blocks(self) -> Iterator[tuple[slice, Evidence]]:
        """The rows, some at a time: where they stand among all, and what is known of them."""
        for start in range(0, len(self.rows), _BLOCK):
            part = slice(start, min(start + _BLOCK, len(self.rows)))
            rows, texts = self.rows[part], self._texts[part]
            vectors = self._vectors[np.maximum(self._which[part], 0)]
            far, near = distances(vectors, self._title_vectors), cosines(vectors, self._title_vectors)
            distance = self._index.spread(far, far.max(axis=1))
            places = {
                form: np.stack([self._index.places(beams, form) for beams in texts])
                for form in (exact, normalised)
            }
            others = np.zeros((1, 1)) if self._collaborative is None else self._collaborative(rows)
            yield (
                part,
                Evidence(
                    rows=rows,
                    spoken=self._which[part] >= 0,
                    distance=distance,
                    cosine=self._index.spread(near, near.min(axis=1)),
                    dn=formulas.minmax(distance),
                    exact=places[exact],
                    normalised=places[normalised],
                    counts=self.counts,
                    popularity=formulas.popularity(self.counts),
                    log_popularity=formulas.log_popularity(self.counts),
                    collaborative=others,
                    cn=formulas.minmax(others),
                ),
            )


@dataclass(frozen=True)
class Curve:
    """Figures of one ranking on validation, by gamma.

    Attributes:
        gammas: (G,) rising.
        figures: name -> one value a gamma, None where it was not computed.
        chosen: the gamma of the highest `CHOSEN_BY`.
    """

    gammas: tuple[float, ...]
    figures: dict[str, list[float | None]]
    chosen: float

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return {"gamma": list(self.gammas), **self.figures, "chosen": self.chosen}


def choose_gammas(ground: Ground, ways: Mapping[str, Ranking]) -> dict[str, Curve]:
    """The curve of each ranking that has a gamma, in one pass over the rows."""
    tuned = {name: way for name, way in ways.items() if way.gammas}
    targets = ground.data.samples.video[ground.rows].astype(np.int64) - 1
    places = {
        name: np.zeros((len(way.gammas), 2, len(targets)), dtype=np.int64) for name, way in tuned.items()
    }
    lists = {name: Exposure(way.gammas, ground.counts, targets) for name, way in tuned.items()}
    for part, evidence in ground.blocks():
        for name, way in tuned.items():
            for number, gamma in enumerate(way.gammas):
                scores = way.scores(evidence, gamma)
                places[name][number, :, part] = standing(way, scores, targets[part], evidence.spoken, None)
                if lists[name].wants(number):
                    lists[name].add(number, scores[evidence.spoken])
    curves = {}
    for name, way in tuned.items():
        found: dict[str, list[float | None]] = {CHOSEN_BY: [], "recall@10": []}
        for higher, tied in places[name]:
            for metric, values in compute(single(higher, tied), tuple(found)).items():
                found[metric].append(float(values.mean()))
        best = int(np.argmax(np.array(found[CHOSEN_BY], dtype=np.float64)))
        curves[name] = Curve(way.gammas, found | lists[name].figures(), way.gammas[best])
    return curves


def standing(
    way: Ranking, scores: np.ndarray, targets: np.ndarray, spoken: np.ndarray, lists: Spans | None
) -> tuple[np.ndarray, np.ndarray]:
    """Where the targets stand.

    Args:
        way: that made the scores.
        scores: (B, N).
        targets: (B,) places in 0 ... N - 1.
        spoken: (B,) bool.
        lists: each row's candidates, as video indices from 1; None = all videos.

    Returns:
        Candidates above each target, and those of its score, itself included, (B,) int64 each; 0 = a miss.
    """
    own = scores[np.arange(len(targets)), targets][:, None]
    if lists is None:
        higher, tied = (scores > own).sum(axis=1), (scores == own).sum(axis=1)
        if way.misses == "unlisted":
            # Beams that name no video take places, too.
            higher = np.where(np.isfinite(own[:, 0]), -own[:, 0], 0).astype(np.int64)
    else:
        owner, videos = lists.owner(), lists.flat() - 1
        listed, border = scores[owner, videos], own[owner, 0]
        higher = np.bincount(owner[listed > border], minlength=len(targets))
        tied = np.bincount(owner[listed == border], minlength=len(targets))
        there = np.bincount(owner[videos == targets[owner]], minlength=len(targets)) > 0
        tied = np.where(there, tied, 0)
    missed = {"empty": ~spoken, "unlisted": ~np.isfinite(own[:, 0]), "none": np.zeros_like(spoken)}[
        way.misses
    ]
    return higher, np.where(missed, 0, tied)


class Exposure:
    """Popularity bias and coverage of the first `TOP` at some of G gammas, as `evaluation.lists` defines them.

    Args:
        gammas: (G,) rising; those that are computed are spread evenly on a logarithmic scale.
        counts: (N,) training interactions.
        targets: (n,) places of all rows' targets.
    """

    def __init__(self, gammas: Sequence[float], counts: np.ndarray, targets: np.ndarray) -> None:
        grid = np.asarray(gammas)
        above = grid[grid > 0]
        wanted = np.geomspace(above[0], above[-1], _CURVE_POINTS - 1) if len(above) else grid[:0]
        nearest = np.abs(grid - np.concatenate([[0.0], wanted])[:, None]).argmin(axis=1)
        self._numbers: list[int] = np.unique(nearest).tolist()
        self._counts, self._gammas = counts, len(grid)
        self._typical = float(counts[targets].mean()) if len(targets) else 0.0
        self._bias = dict.fromkeys(self._numbers, 0.0)
        self._rows = dict.fromkeys(self._numbers, 0)
        self._missed = {number: np.zeros(len(counts)) for number in self._numbers}

    def wants(self, number: int) -> bool:
        """Is this gamma one of those that are computed?"""
        return number in self._bias

    def add(self, number: int, scores: np.ndarray) -> None:
        """Take in the lists of some rows, (B, N) scores."""
        share = chances(scores, TOP)
        self._bias[number] += float((share @ self._counts).sum()) / min(TOP, len(self._counts))
        self._rows[number] += len(scores)
        with np.errstate(divide="ignore"):  # a certain place is log 0
            self._missed[number] += np.log1p(-share).sum(axis=0)

    def figures(self) -> dict[str, list[float | None]]:
        """Both figures by gamma, None where it was left out."""
        bias: list[float | None] = [None] * self._gammas
        coverage: list[float | None] = [None] * self._gammas
        for number in self._numbers:
            bias[number] = self._bias[number] / max(self._rows[number], 1) / (self._typical or 1.0)
            coverage[number] = float(-np.expm1(self._missed[number]).mean())
        return {f"popularity_bias@{TOP}": bias, f"coverage@{TOP}": coverage}


def chances(scores: np.ndarray, k: int) -> np.ndarray:
    """Probability that each video is in a row's first K, ties at the K-th place sharing what is free: (B, N) float64.

    >>> chances(np.array([[3.0, 1.0, 2.0, 2.0]]), 2).tolist()
    [[1.0, 0.0, 0.5, 0.5]]
    """
    k = min(k, scores.shape[1])
    border = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    sure, tied = scores > border, scores == border
    free = k - sure.sum(axis=1, keepdims=True)
    return sure + tied * (free / tied.sum(axis=1, keepdims=True))


def measure(
    ground: Ground,
    ways: Mapping[str, Ranking],
    gammas: Mapping[str, float],
    drawn: Drawn | None,
    protocols: Mapping[str, Protocol] = PROTOCOLS,
    metrics: tuple[str, ...] = METRICS,
) -> dict[str, dict[str, Result]]:
    """Results of every ranking under every protocol: ranking -> protocol -> result.

    Args:
        ground: of one split.
        ways: rankings.
        gammas: of those that have one.
        drawn: the rows, where they are not all of the split.
        protocols: by the names that the results get.
        metrics: of ranks.
    """
    data, rows = ground.data, ground.rows
    targets = data.samples.video[rows].astype(np.int64) - 1
    shape = (len(protocols), 2, len(rows))
    places = {name: np.zeros(shape, dtype=np.int64) for name in ways}
    for part, evidence in ground.blocks():
        lists = [
            None if protocol.name == "full" else listed_candidates(protocol, data, evidence.rows)
            for protocol in protocols.values()
        ]
        for name, way in ways.items():
            scores = way.scores(evidence, gammas.get(name, 0.0))
            for number, candidates in enumerate(lists):
                found = standing(way, scores, targets[part], evidence.spoken, candidates)
                places[name][number, :, part] = found
    masks = {name: mask[rows] for name, mask in slices(data).items()}
    users = people_of(data.dataset, data.task, data.split)[rows]
    results: dict[str, dict[str, Result]] = {}
    for name in ways:
        results[name] = {}
        for (protocol_name, protocol), (higher, tied) in zip(protocols.items(), places[name], strict=True):
            results[name][protocol_name] = Result(
                fingerprint=fingerprint(protocol, data, drawn),
                rows=rows,
                values=compute(single(higher, tied), metrics),
                slices=masks,
                users=users,
                positives_not_listed=int((tied == 0).sum()),
            )
    return results
