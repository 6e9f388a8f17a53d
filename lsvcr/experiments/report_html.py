"""HTML that escapes by construction: a text becomes markup only through `tag`, which escapes what is not."""

import re
from collections.abc import Iterable, Sequence
from html import escape

_VOID = {"meta", "link", "wbr"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""The page loads nothing and runs nothing, whatever a file name or a setting holds."""


class Html(str):
    """Markup: `tag` puts it into a page as it is, and escapes every other text."""


def tag(name: str, /, *children: str, **attributes: object) -> Html:
    """One element.

    Args:
        name: of the element.
        children: what it holds; a text that is not `Html` is escaped.
        attributes: a trailing underscore is dropped (`class_`), others become dashes; None leaves one out.
    """
    words = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    ]
    opening = f"<{name}{''.join(words)}>"
    return Html(opening if name in _VOID else f"{opening}{joined(children)}</{name}>")


def joined(parts: Iterable[str]) -> Html:
    """The parts one after the other, escaped where they are not `Html`."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def breakable(text: str) -> Html:
    """A name that a narrow window may break behind each `_` and `/`; markup stays as it is."""
    if isinstance(text, Html):
        return text
    return Html(tag("wbr").join(escape(piece) for piece in re.split(r"(?<=[_/])(?!$)", text)))


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", numbers: bool = True
) -> Html:
    """A table whose first column names its rows; the others are set right where they hold numbers.

    It scrolls inside itself where it is too wide for the window.
    """
    side = "n" if numbers else None
    columns = [
        tag("th", breakable(cell), scope="col", class_=side if i else None) for i, cell in enumerate(header)
    ]
    body = [
        tag(
            "tr",
            tag("th", breakable(row[0]), scope="row"),
            *(tag("td", cell, class_=side) for cell in row[1:]),
        )
        for row in rows
    ]
    title = [tag("caption", caption)] if caption else []
    whole = tag(
        "table",
        *title,
        tag("thead", tag("tr", *columns)),
        tag("tbody", *body),
        class_="numbers" if numbers else None,
    )
    return tag("div", whole, class_="scroll")


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """Terms with their values, side by side where there is room."""
    return tag("dl", *(tag("div", tag("dt", term), tag("dd", value)) for term, value in pairs))


def section(title: str, *children: str) -> Html:
    """A part of the page under its heading."""
    return tag("section", tag("h2", title), *children)


def details(summary: str, *children: str) -> Html:
    """What is folded away until asked for."""
    return tag("details", tag("summary", summary), *children)


def page(title: str, *body: str) -> str:
    """A whole document that needs nothing beside itself, readable in light and dark and on a narrow window."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),  # or a browser would ask the server for one
        tag("style", Html(_STYLE)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', tag('main', *body)), lang='en')}\n"


_STYLE = """
:root { --page: #ffffff; --card: #f6f8fa; --text: #1c2128; --soft: #57606a; --line: #d0d7de; --grid: #e4e8ec;
  --warn: #fff4d6; --warn-line: #b7791f; --good: #1a7f37; --open: #9a5b00;
  --s1: #1f6fb2; --s2: #c2570c; --s3: #2a7d4f; --s4: #8a4fbf; --s5: #b3261e; --s6: #5f6b76; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0d1117; --card: #161b22; --text: #e6edf3; --soft: #9da7b3; --line: #30363d; --grid: #252b33;
    --warn: #33270a; --warn-line: #d4a72c; --good: #56d364; --open: #e3b341;
    --s1: #6cb6ff; --s2: #f0883e; --s3: #56d364; --s4: #d2a8ff; --s5: #ff7b72; --s6: #a5b1bd; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 82rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .75rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
p { margin: .5rem 0; }
.soft { color: var(--soft); }
.state { font-weight: 600; color: var(--good); }
.state.open { color: var(--open); }
.warning { background: var(--warn); border-left: 4px solid var(--warn-line); padding: .5rem .75rem; margin: .5rem 0; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr));
  gap: .5rem 1.5rem; margin: .75rem 0; }
dl div { min-width: 0; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 23rem), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .75rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; min-width: 0; }
figcaption { font-weight: 600; font-size: .95rem; }
figcaption .soft { font-weight: 400; font-size: .85rem; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .85rem; margin: .2rem 0; }
.legend svg { width: 26px; height: 10px; margin-right: .3rem; vertical-align: middle; }
figure > svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; }
.grid { stroke: var(--grid); stroke-width: 1; }
.axis { stroke: var(--soft); stroke-width: 1; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.s1 { stroke: var(--s1); } .s2 { stroke: var(--s2); stroke-dasharray: 7 3; }
.s3 { stroke: var(--s3); stroke-dasharray: 2 3; }
.s4 { stroke: var(--s4); stroke-dasharray: 9 3 2 3; } .s5 { stroke: var(--s5); stroke-dasharray: 4 4; }
.s6 { stroke: var(--s6); stroke-dasharray: 12 4; }
.chance { stroke: var(--soft); stroke-dasharray: 2 4; }
.dot { stroke-dasharray: none; stroke-width: 1; fill: var(--card); }
.bar { fill: var(--s6); fill-opacity: .45; } .bar.reference { fill: var(--s1); }
.whisker { fill: none; stroke: var(--text); stroke-width: 1.4; }
.point { fill: var(--card); stroke: var(--text); stroke-width: .8; }
.band { fill: transparent; }
.band:hover { fill: var(--soft); fill-opacity: .22; }
details { margin: .4rem 0; }
summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; max-width: 100%; }
figure .scroll { max-height: 24rem; overflow-y: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .5rem 0; }
caption { text-align: left; color: var(--soft); padding-bottom: .25rem; }
th, td { text-align: left; padding: .2rem .75rem .2rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
th { font-weight: 600; }
td { min-width: 4.2rem; }
thead th { color: var(--soft); font-weight: 400; }
.n { text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
table.numbers th { overflow-wrap: normal; }
th .soft { display: block; font-weight: 400; font-size: .85rem; }
@media print { figure, section { break-inside: avoid; } }
"""
