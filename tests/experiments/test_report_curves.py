"""Curves of a report: which names share a chart, what axes show, what is drawn where."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsvcr.experiments.report_axes import step_axis, value_axis
from lsvcr.experiments.report_log import Chart, charts_by_prefix, read_log
from lsvcr.experiments.report_svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, figure, spread, thinned
from tests.experiments.report_folders import Page, write_log

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def drawn(series: dict[str, dict[int, float | None]], last_step: int = 10, title: str = "loss") -> Page:
    """A chart as a page."""
    return Page(f"<body>{figure(Chart(title, series), last_step, 'c')}</body>")


def places(page: Page) -> list[list[tuple[float, float]]]:
    """Points of every piece of every line."""
    pieces = [piece for path in page.all("path") for piece in path.attributes["d"].split("M")[1:]]
    return [[tuple(map(float, point.split())) for point in piece.split("L")] for piece in pieces]


def test_names_are_grouped_by_prefix_and_share_charts_by_stem(tmp_path):
    names = (
        "train/loss", "val/recall@1", "val/recall@10", "val/own@1", "val/own@1_chance", "val/cka", "train/lm", "plain",
        "val/deep/uniformity",
    )  # fmt: skip
    write_log(tmp_path, [{"step": 1, **dict.fromkeys(names, 1.0)}])
    charts = charts_by_prefix(read_log(tmp_path / "metrics.jsonl"))
    assert {prefix: [(c.title, list(c.series)) for c in group] for prefix, group in charts.items()} == {
        "train": [("loss", ["loss"]), ("lm", ["lm"])],
        "val": [
            ("recall", ["recall@1", "recall@10"]),
            ("own@1", ["own@1", "own@1_chance"]),
            ("cka", ["cka"]),
        ],
        "": [("plain", ["plain"])],
        "val/deep": [("uniformity", ["uniformity"])],
    }


def test_lines_of_one_step_are_joined_and_the_later_value_counts(tmp_path):
    write_log(
        tmp_path, [{"step": 4, "a": 1}, {"step": 2, "a": 5.0}, {"step": 4, "b": None}, {"step": 4, "a": 2}]
    )
    log = read_log(tmp_path / "metrics.jsonl")
    assert log.series == {"a": {2: 5.0, 4: 2.0}, "b": {4: None}}
    assert list(log.series["a"]) == [2, 4] and log.last_step == 4 and log.not_finite == ["b"]


@pytest.mark.parametrize("end, cut", [("\n", False), ("", False), ('\n{"step": 3, "a', True), ("\n ", False)])
def test_only_the_last_line_may_be_unfinished(tmp_path, end, cut):
    write_log(tmp_path, [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}], end)
    log = read_log(tmp_path / "metrics.jsonl")
    assert log.series == {"a": {1: 1.0, 2: 2.0}} and log.cut is cut


def test_a_line_cut_inside_a_letter_is_unfinished(tmp_path):
    whole = json.dumps({"step": 1, "ä": 1.0}, ensure_ascii=False).encode()
    (tmp_path / "metrics.jsonl").write_bytes(whole + b"\n" + whole[: whole.index("ä".encode()) + 1])
    log = read_log(tmp_path / "metrics.jsonl")
    assert log.cut and log.series == {"ä": {1: 1.0}}


@given(st.lists(FINITE, min_size=1, max_size=20))
def test_an_axis_shows_every_value(values):
    axis = value_axis(values)
    assert axis.low < axis.high and math.isfinite(axis.high - axis.low)
    assert 1 <= len(axis.marks) <= 9 and list(axis.marks) == sorted(set(axis.marks))
    spots = [axis.place(value) for value in sorted(values)]
    assert spots == sorted(spots) and 0 <= spots[0] <= spots[-1] <= 1
    for value in values:
        if abs(value) < 1e299:
            slack = 1e-6 * max(abs(axis.low), abs(axis.high))
            assert axis.low - slack <= value <= axis.high + slack


def test_marks_are_round():
    assert value_axis([0.0, 1.0]).marks == pytest.approx((0, 0.2, 0.4, 0.6, 0.8, 1))
    assert value_axis([11.5, 23.4]).marks == (10, 15, 20, 25)
    assert step_axis(60).marks == (0, 20, 40, 60) and step_axis(3).marks == (0, 1, 2, 3)
    assert step_axis(0).marks == (0, 1)


def test_a_line_that_does_not_move_stands_in_the_middle():
    for value in (0.0, 5.0, -3e-7, 1e12):
        assert value_axis([value, value]).place(value) == pytest.approx(0.5, abs=0.2)


def test_a_scale_is_logarithmic_where_a_linear_one_would_hide_most():
    spike = value_axis([1000.0, 9.0, 8.0, 7.0])
    assert spike.log and spike.place(10.0) == pytest.approx(1 / 3) and spike.marks == (1, 10, 100, 1000)
    assert not value_axis([0.0, 9.0, 8.0, 1000.0]).log  # zero has no logarithm
    assert not value_axis([3e-3, 2e-3, 1e-6]).log  # a decaying learning rate is seen well enough
    assert "log scale" in drawn({"loss": {1: 1000.0, 2: 9.0, 3: 8.0, 4: 7.0}}).text


def test_a_curve_goes_from_corner_to_corner():
    page = drawn({"loss": {0: 0.0, 10: 1.0}})
    assert places(page) == [[(LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, TOP)]]
    assert page.all("svg")[0].attributes["viewbox"] == f"0 0 {WIDTH} {HEIGHT}"


def test_a_value_that_was_not_finite_is_a_gap():
    page = drawn({"loss": {1: 1.0, 2: 2.0, 3: None, 4: 1.5, 5: None}})
    assert [len(piece) for piece in places(page)] == [2, 1]
    assert len(page.all("circle")) == 3  # the point on its own is seen too
    assert "–" in [cell.text for cell in page.all("td")]


def test_a_chance_level_is_told_apart_from_figures():
    page = drawn({"own@1": {1: 0.5, 2: 0.6}, "own@1_chance": {1: 0.1, 2: 0.1}, "own@5": {1: 0.7, 2: 0.8}})
    classes = [path.attributes["class"] for path in page.all("path")]
    assert classes == ["curve s1", "curve chance", "curve s2"]
    (legend,) = page.all("div", "legend")
    assert legend.text.split() == ["own@1", "0.6", "own@1_chance", "0.1", "own@5", "0.8"]


def test_values_are_told_under_the_pointer_in_words_and_in_a_table():
    page = drawn({"recall@1": {5: 0.25, 10: 0.5}, "recall@5": {10: 0.75}}, title="recall")
    bands = [band.text for band in page.all("rect", "band")]
    assert bands == ["step 5\nrecall@1: 0.25", "step 10\nrecall@1: 0.5\nrecall@5: 0.75"]
    (svg,) = [svg for svg in page.all("svg") if svg.attributes.get("role") == "img"]
    named = {e.attributes["id"]: e.text for e in page.elements if "id" in e.attributes}
    title, about = (named[name] for name in svg.attributes["aria-labelledby"].split())
    assert title == "recall by step"
    assert (
        about == "recall@1: 0.25 at step 5, 0.5 at step 10, between 0.25 and 0.5; recall@5: 0.75 at step 10"
    )
    assert [cell.text for cell in page.all("td")] == ["0.25", "", "0.5", "0.75"]
    assert [cell.text for cell in page.all("th")] == ["step", "recall@1", "recall@5", "5", "10"]


def test_bands_cover_the_picture_without_overlap():
    page = drawn({"loss": {step: 1.0 * step for step in (1, 2, 6, 10)}})
    edges = [(float(b.attributes["x"]), float(b.attributes["width"])) for b in page.all("rect")]
    assert edges[0][0] == LEFT
    for (x, width), (following, _) in zip(edges, [*edges[1:], (WIDTH - RIGHT, 0.0)], strict=True):
        assert x + width == pytest.approx(following, abs=0.11)


def test_a_long_run_stays_small_and_keeps_its_extremes():
    values = {step: 1.0 + 0.1 * math.sin(step) for step in range(1, 20_001)}
    values[7_777], values[13_331] = 9.0, -9.0
    page = drawn({"loss": dict(values)}, last_step=20_000)
    (line,) = places(page)
    assert 300 <= len(line) <= 402
    # Both spikes reach as far as the axis from -10 to 10 has them.
    heights = [y for _, y in line]
    bottom, span = HEIGHT - BOTTOM, HEIGHT - TOP - BOTTOM
    assert (min(heights), max(heights)) == pytest.approx(
        (bottom - 0.95 * span, bottom - 0.05 * span), abs=0.1
    )
    assert len(page.all("rect")) == 60 and len(page.all("tr")) == 201
    assert "values (200 of 20,000 steps; metrics.jsonl has all)" in page.text
    assert len(page.source) < 60_000


@given(st.lists(st.one_of(st.none(), FINITE), min_size=1, max_size=300), st.integers(4, 50))
def test_thinning_keeps_ends_order_and_extremes(values, most):
    points = list(enumerate(values))
    kept = thinned(points, most)
    assert kept == sorted(kept, key=lambda point: point[0]) and set(kept) <= set(points)
    assert kept[0] == points[0] and kept[-1] == points[-1] and len(kept) <= most + 4
    finite = [value for value in values if value is not None]
    if finite:
        left = [value for _, value in kept if value is not None]
        assert (min(left), max(left)) == (min(finite), max(finite))


@given(st.integers(0, 1000), st.integers(2, 100))
def test_spread_is_even(count, most):
    chosen = spread(count, most)
    assert len(chosen) == min(count, most) and chosen == sorted(set(chosen))
    assert not chosen or (chosen[0] == 0 and chosen[-1] == count - 1)


@given(st.dictionaries(st.integers(0, 2**62), st.one_of(st.none(), FINITE), min_size=1, max_size=30))
def test_whatever_is_logged_can_be_drawn(series):
    page = drawn({"a": dict(sorted(series.items()))}, max(series))
    numbers = [
        float(n)
        for path in page.all("path")
        for n in re.findall(r"-?[\d.]+(?:e-?\d+)?", path.attributes["d"])
    ]
    assert all(0 <= number <= WIDTH for number in numbers)
    assert not re.search(r"\b(nan|inf)\b", page.source)
