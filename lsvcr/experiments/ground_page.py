"""The page of `lsvcr ground`: every ranking's figures, and what gamma does to accuracy, popularity and coverage."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lsvcr.baselines.grounding_rank import CHOSEN_BY, TOP, Curve
from lsvcr.experiments.report_axes import Axis
from lsvcr.experiments.report_html import Html, facts, page, section, table, tag
from lsvcr.experiments.report_log import Chart
from lsvcr.experiments.report_svg import figure_over, svg_file

_COLUMNS = ("hr@1", "hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20")
_ACCURACY = (CHOSEN_BY, "recall@10")
_EXPOSURE = (f"popularity_bias@{TOP}", f"coverage@{TOP}")


def ground_page(report: Mapping[str, Any], curves: Mapping[str, tuple[str, Curve]]) -> str:
    """The whole page, which needs nothing beside itself.

    Args:
        report: as `ground.ground` gives it.
        curves: for each ranking with a gamma its formula and curve.
    """
    return page(
        f"grounding of {report['run']}",
        tag("h1", "Grounding of generated titles"),
        facts(
            [
                ("run", str(report["run"])),
                ("decoding", str(report["decoding"])),
                ("other recommender", str(report["collaborative"] or "none")),
                ("gamma chosen by", str(report["gamma_chosen_by"])),
            ]
        ),
        section("What was generated", _generated(report["generated"])),
        section("Test figures, full catalogue", _figures(report["rankings"])),
        section(
            "Figures by gamma",
            tag(
                "p",
                "On validation. The scale is logarithmic; gamma = 0 stands at its left end. One gamma was chosen for "
                "each ranking and holds for all of its test figures.",
                class_="soft",
            ),
            *(_curves(name, formula, curve) for name, (formula, curve) in curves.items()),
        ),
    )


def ground_svg(curves: Mapping[str, Curve]) -> str:
    """What gamma does to each ranking's accuracy on validation, as a picture of its own."""
    series = {name: _by_gamma(curve, CHOSEN_BY) for name, curve in curves.items()}
    across = gamma_axis([gamma for curve in curves.values() for gamma in curve.gammas])
    return svg_file(Chart(f"{CHOSEN_BY} on validation, by gamma", series), across, "gamma")


def gamma_axis(gammas: Sequence[float]) -> Axis:
    """A logarithmic axis from half the smallest gamma above 0, where 0 is, to the largest; powers of 10 are marked."""
    above = [gamma for gamma in gammas if gamma > 0]
    low, high = min(above) / 2, max(above)
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    return Axis(low, high, tuple(10.0**power for power in powers), log=True)


def _curves(name: str, formula: str, curve: Curve) -> Html:
    """Accuracy and exposure of one ranking."""
    across = gamma_axis(curve.gammas)
    charts = []
    for number, names in enumerate((_ACCURACY, _EXPOSURE)):
        series = {figure: _by_gamma(curve, figure) for figure in names}
        charts.append(figure_over(Chart(", ".join(names), series), across, "gamma", f"{name}-{number}"))
    heading = f"{name}: {formula}, gamma = {curve.chosen:g}"
    return tag("div", tag("h3", heading), tag("div", *charts, class_="charts"))


def _by_gamma(curve: Curve, figure: str) -> dict[float, float | None]:
    pairs = zip(curve.gammas, curve.figures[figure], strict=True)
    return {gamma: value for gamma, value in pairs if value is not None}


def _figures(rankings: Mapping[str, Any]) -> Html:
    rows = []
    for name, ranking in rankings.items():
        metrics = ranking["protocols"]["full"]["metrics"]
        gamma = "–" if ranking["gamma"] is None else f"{ranking['gamma']:g}"
        rows.append([name, gamma, *(f"{metrics[column]['value']:.4f}" for column in _COLUMNS)])
    return table(["ranking", "gamma", *_COLUMNS], rows)


def _generated(parts: Mapping[str, Mapping[str, Any]]) -> Html:
    names = list(next(iter(parts.values())))
    rows = [
        [
            split,
            *(f"{said[name]:.4f}" if isinstance(said[name], float) else f"{said[name]:,}" for name in names),
        ]
        for split, said in parts.items()
    ]
    return table(["split", *names], rows)
