"""Curves of a run as inline SVG: drawn here, so that the page needs no script."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from lsvcr.experiments.report_axes import Axis, step_axis, value_axis
from lsvcr.experiments.report_html import Html, details, table, tag
from lsvcr.experiments.report_log import CHANCE, Chart, Series

WIDTH, HEIGHT = 400, 210
LEFT, RIGHT, TOP, BOTTOM = 54, 24, 10, 36
"""Pixels at the width of a phone; the picture grows with its place."""

COLOURS = 6
DRAWN_POINTS = 400
"""Points of one line; of more, the lowest and highest of each stretch are drawn."""

DOTTED_POINTS = 40
"""A line of at most this many points shows each of them."""

BANDS = 60
"""Steps of a picture that tell their values under the pointer."""

TABLE_ROWS = 200

_HEAD, _ENTRY, _LETTER = 22, 110, 6
"""A file: pixels above the picture, of an entry of the legend at least, and of a letter in it at most."""

_FILE_STYLE = """
text { fill: #57606a; font: 11px system-ui, sans-serif; } .title { fill: #1c2128; font-weight: 600; font-size: 13px; }
.grid { stroke: #e4e8ec; } .axis { stroke: #57606a; } .band { fill: transparent; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.dot { fill: #ffffff; stroke-width: 1; }
.s1 { stroke: #1f6fb2; } .s2 { stroke: #c2570c; stroke-dasharray: 7 3; } .s3 { stroke: #2a7d4f; stroke-dasharray: 2 3; }
.s4 { stroke: #8a4fbf; stroke-dasharray: 9 3 2 3; } .s5 { stroke: #b3261e; stroke-dasharray: 4 4; }
.s6 { stroke: #5f6b76; stroke-dasharray: 12 4; } .chance { stroke: #57606a; stroke-dasharray: 2 4; }
.dot.s1, .dot.s2, .dot.s3, .dot.s4, .dot.s5, .dot.s6 { stroke-dasharray: none; }
"""


def figure(chart: Chart, last_step: int, name: str) -> Html:
    """A chart with its caption, legend and table of values.

    Args:
        chart: what to draw; a series without any finite value has no line.
        last_step: the right end of the step axis, the same for all charts of a page.
        name: unique on the page, for the picture's accessible title.
    """
    return figure_over(chart, step_axis(last_step), "step", name)


def figure_over(chart: Chart, across: Axis, unit: str, name: str) -> Html:
    """As `figure`, over any numbers instead of steps.

    Args:
        chart: what to draw; the keys of its series are what it is drawn over.
        across: the axis of these numbers; what lies outside it is drawn at its ends.
        unit: their name.
        name: unique on the page.
    """
    values = [value for series in chart.series.values() for value in series.values() if value is not None]
    if not values:
        return tag("figure", tag("figcaption", chart.title), tag("p", "No finite value.", class_="soft"))
    up = value_axis(values)
    caption = tag("figcaption", chart.title, *([tag("span", " log scale", class_="soft")] if up.log else []))
    return tag(
        "figure", caption, _legend(chart), _picture(chart, across, up, (name, unit)), _values(chart, unit)
    )


def svg_file(chart: Chart, across: Axis, unit: str) -> str:
    """A chart as a file of its own, with title and legend inside and the colours of a light page.

    Args:
        chart: with a finite value or more.
        across, unit: as of `figure_over`.
    """
    values = [value for series in chart.series.values() for value in series.values() if value is not None]
    entries = []
    entry = max(_ENTRY, 40 + _LETTER * max(map(len, chart.series)))
    in_a_row = max(1, (WIDTH - LEFT) // entry)
    for place, (name, mark) in enumerate(_marks(chart).items()):
        x, y = LEFT + place % in_a_row * entry, _HEAD + HEIGHT + 12 + place // in_a_row * 16
        entries += [
            tag("line", x1=x, x2=x + 24, y1=y - 4, y2=y - 4, class_=f"curve {mark}"),
            tag("text", name, x=x + 30, y=y),
        ]
    rows = -(-len(chart.series) // in_a_row)
    whole = tag(
        "svg",
        tag("style", Html(_FILE_STYLE)),
        tag("rect", width="100%", height="100%", fill="#ffffff"),
        tag("text", chart.title, x=LEFT, y=16, class_="title"),
        _picture(chart, across, value_axis(values), ("picture", unit), y=_HEAD, width=WIDTH, height=HEIGHT),
        *entries,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {_HEAD + HEIGHT + 16 * rows + 8}",
    )
    return f"{whole}\n"


def number(value: float | None) -> str:
    """Four significant digits; a dash for none."""
    return "–" if value is None else f"{value:.4g}"


def thinned(points: Sequence[tuple[float, float | None]], most: int) -> list[tuple[float, float | None]]:
    """At most about `most` points of a line, in order: of each stretch its lowest and its highest, and both ends.

    A gap (None) stays where a whole stretch has nothing else.
    """
    if len(points) <= most:
        return list(points)
    length = -(-2 * len(points) // most)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), length):
        stretch = range(start, min(start + length, len(points)))
        finite = [(value, i) for i in stretch if (value := points[i][1]) is not None]
        kept |= {min(finite)[1], max(finite)[1]} if finite else {start}
    return [points[i] for i in sorted(kept)]


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 to count - 1, evenly, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _picture(chart: Chart, across: Axis, up: Axis, names: tuple[str, str], **place: int) -> Html:
    """The axes and lines of a chart; `place` says where it stands inside another picture."""
    name, unit = names
    parts = [*_grid(across, up, unit), *_bands(chart, across, unit)]
    for series_name, mark in _marks(chart).items():
        parts += _line(chart.series[series_name], mark, across, up)
    return tag(
        "svg",
        tag("title", f"{chart.title} by {unit}", id=f"{name}-title"),
        tag("desc", _told(chart, unit), id=f"{name}-about"),
        *parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{name}-title {name}-about",
        **place,
    )


def _grid(across: Axis, up: Axis, unit: str) -> Iterator[Html]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for mark in up.marks:
        y = _y(up, mark)
        yield tag("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid")
        yield tag("text", f"{clean(mark, up):.6g}", x=LEFT - 6, y=round(y + 4, 1), text_anchor="end")
    for mark in across.marks:
        x = _x(across, mark)
        yield tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis")
        yield tag("text", f"{mark:,.10g}", x=x, y=bottom + 16, text_anchor="middle")
    yield tag("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, class_="axis")
    yield tag("text", unit, x=(LEFT + right) / 2, y=HEIGHT - 4, text_anchor="middle")


def clean(mark: float, axis: Axis) -> float:
    """A mark that rounding has left beside zero is zero."""
    return 0.0 if abs(mark) < 1e-9 * (axis.high - axis.low) and not axis.log else mark


def _line(series: Series, mark: str, across: Axis, up: Axis) -> Iterator[Html]:
    """The path of one series, interrupted where a value was not finite, and its dots where they are few."""
    points = thinned(list(series.items()), DRAWN_POINTS)
    path, alone = [], []
    for finite, run in groupby(points, key=lambda point: point[1] is not None):
        if not finite:
            continue
        places = [(_x(across, step), _y(up, value)) for step, value in run if value is not None]
        path.append("M" + "L".join(f"{x} {y}" for x, y in places))
        alone += places if len(places) == 1 or len(points) <= DOTTED_POINTS else []
    yield tag("path", d="".join(path), class_=f"curve {mark}")
    for x, y in alone:
        yield tag("circle", cx=x, cy=y, r=2, class_=f"dot {mark}")


def _bands(chart: Chart, across: Axis, unit: str) -> Iterator[Html]:
    """Upright bands that tell the values at a step when the pointer is on them."""
    steps = chart.steps
    shown = [steps[i] for i in spread(len(steps), BANDS)]
    places = [_x(across, step) for step in shown]
    for i, (step, x) in enumerate(zip(shown, places, strict=True)):
        left = (places[i - 1] + x) / 2 if i else LEFT
        right = (x + places[i + 1]) / 2 if i + 1 < len(places) else WIDTH - RIGHT
        rows = [f"{name}: {number(s[step])}" for name, s in chart.series.items() if step in s]
        yield tag(
            "rect",
            tag("title", "\n".join([f"{unit} {step:,}", *rows])),
            x=round(left, 1),
            y=TOP,
            width=round(right - left, 1),
            height=HEIGHT - TOP - BOTTOM,
            class_="band",
        )


def _marks(chart: Chart) -> dict[str, str]:
    """CSS class of each series; a chance level has a quiet one of its own."""
    figures = [name for name in chart.series if not name.endswith(CHANCE)]
    own = {name: f"s{i % COLOURS + 1}" for i, name in enumerate(figures)}
    return {name: own.get(name, "chance") for name in chart.series}


def _legend(chart: Chart) -> Html:
    """What each line is and where it ends; of a single line, its range instead of its name."""
    if len(chart.series) == 1:
        (series,) = chart.series.values()
        values = [value for value in series.values() if value is not None]
        ends = f"first {number(values[0])}, last {number(values[-1])}"
        return tag(
            "p", f"{ends}, between {number(min(values))} and {number(max(values))}", class_="legend soft"
        )
    entries: list[str] = []
    for name, mark in _marks(chart).items():
        line = tag("line", x1=1, x2=25, y1=5, y2=5, class_=f"curve {mark}")
        swatch = tag("svg", line, viewBox="0 0 26 10", aria_hidden="true")
        last = number(list(chart.series[name].values())[-1])
        # The blanks are for who hears or copies the legend.
        entries += [tag("span", swatch, name, tag("span", f" {last}", class_="soft")), " "]
    return tag("div", *entries, class_="legend")


def _told(chart: Chart, unit: str) -> str:
    """The curves in a sentence."""
    parts = []
    for name, series in chart.series.items():
        points = [(step, value) for step, value in series.items() if value is not None]
        if not points:
            parts.append(f"{name}: no finite value")
            continue
        (first, begin), (last, end) = points[0], points[-1]
        low, high = min(value for _, value in points), max(value for _, value in points)
        said = f"{number(begin)} at {unit} {first:,}"
        if len(points) > 1:
            said += f", {number(end)} at {unit} {last:,}, between {number(low)} and {number(high)}"
        parts.append(said if len(chart.series) == 1 else f"{name}: {said}")
    return "; ".join(parts)


def _values(chart: Chart, unit: str) -> Html:
    steps = chart.steps
    shown = [steps[i] for i in spread(len(steps), TABLE_ROWS)]
    rows = [
        [f"{step:,}", *(number(s[step]) if step in s else "" for s in chart.series.values())]
        for step in shown
    ]
    summary = (
        "values"
        if len(shown) == len(steps)
        else f"values ({len(shown)} of {len(steps):,} {unit}s; metrics.jsonl has all)"
    )
    return details(summary, table([unit, *chart.series], rows))


def _x(axis: Axis, step: float) -> float:
    return round(LEFT + axis.place(step) * (WIDTH - LEFT - RIGHT), 1)


def _y(axis: Axis, value: float) -> float:
    return round(HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM), 1)
