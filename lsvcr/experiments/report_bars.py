"""Bars with intervals as inline SVG, for pages that compare: one a row, all on one scale from 0."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lsvcr.experiments.report_axes import Axis, value_axis
from lsvcr.experiments.report_html import Html, tag
from lsvcr.experiments.report_svg import RIGHT, TOP, WIDTH, clean, number

ROW, BAR, FOOT = 26, 14, 22
"""Pixels of a row, of its bar, and of the scale below."""

_LETTER = 6.2
"""Pixels of a letter of a label, about."""

_MOST_LABEL = 150


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        name: of the row.
        value: its length, 0 or more.
        interval: of the value, or None.
        points: single values, such as those of the seeds, as dots.
        marked: it is what the others are compared with.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    points: tuple[float, ...] = ()
    marked: bool = False


def bar_figure(title: str, bars: Sequence[Bar], name: str) -> Html:
    """Bars with their caption.

    Args:
        title: of the picture.
        bars: at least one, from top to bottom.
        name: unique on the page, for the picture's accessible title.
    """
    longest = max(len(bar.name) for bar in bars)
    left = round(min(_MOST_LABEL, 12 + longest * _LETTER), 1)
    ends = [end for bar in bars for end in (*(bar.interval or ()), *bar.points, bar.value)]
    across = value_axis([0.0, *ends])
    bottom = TOP + ROW * len(bars)
    parts = [*_scale(across, left, bottom)]
    for place, bar in enumerate(bars):
        parts += _bar(bar, across, left, TOP + ROW * place + ROW / 2)
    picture = tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", "; ".join(map(_told, bars)), id=f"{name}-about"),
        *parts,
        viewBox=f"0 0 {WIDTH} {bottom + FOOT}",
        role="img",
        aria_labelledby=f"{name}-title {name}-about",
    )
    return tag("figure", tag("figcaption", title), picture)


def _scale(across: Axis, left: float, bottom: float) -> Iterator[Html]:
    for mark in across.marks:
        x = _x(across, left, mark)
        yield tag("line", x1=x, x2=x, y1=TOP, y2=bottom, class_="grid")
        yield tag("text", f"{clean(mark, across):.6g}", x=x, y=bottom + 15, text_anchor="middle")


def _bar(bar: Bar, across: Axis, left: float, middle: float) -> Iterator[Html]:
    start, end = _x(across, left, 0.0), _x(across, left, bar.value)
    yield tag("text", _fitting(bar.name), x=left - 6, y=round(middle + 4, 1), text_anchor="end")
    yield tag(
        "rect",
        tag("title", _told(bar)),
        x=min(start, end),
        y=round(middle - BAR / 2, 1),
        width=round(abs(end - start), 1),
        height=BAR,
        class_="bar reference" if bar.marked else "bar",
    )
    if bar.interval is not None:
        low, high = (_x(across, left, edge) for edge in bar.interval)
        ends = "".join(f"M{x} {middle - 4}L{x} {middle + 4}" for x in (low, high))
        yield tag("path", d=f"M{low} {middle}L{high} {middle}{ends}", class_="whisker")
    for point in bar.points:
        yield tag("circle", cx=_x(across, left, point), cy=middle, r=2, class_="point")


def _told(bar: Bar) -> str:
    """A bar in words."""
    said = f"{bar.name}: {number(bar.value)}"
    if bar.interval is not None:
        said += f" ({number(bar.interval[0])} to {number(bar.interval[1])})"
    return said


def _fitting(name: str) -> str:
    """A name that fits beside its bar; the whole one is in the bar's text."""
    most = int((_MOST_LABEL - 12) / _LETTER)
    return name if len(name) <= most else name[: most - 1] + "…"


def _x(across: Axis, left: float, value: float) -> float:
    return round(left + across.place(value) * (WIDTH - left - RIGHT), 1)
