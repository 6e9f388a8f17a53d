"""A headless browser for the tests of pages: Chromium, or Chrome, where one is installed."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",  # containers have little of it
    # No name leads anywhere: what a page asks for from outside cannot be reached from a test.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
DARK = "--blink-settings=preferredColorScheme=0"
LIGHT = "--blink-settings=preferredColorScheme=1"
SECONDS = 120
"""A browser that takes longer hangs."""

_MEASURE = """
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const inner = frame.contentDocument, view = frame.contentWindow;
    const style = (node, name) => view.getComputedStyle(node)[name];
    const curves = [...inner.querySelectorAll("path.curve")];
    return {
      width: frame.clientWidth,
      scroll_width: inner.documentElement.scrollWidth,
      lengths: curves.map(path => path.getTotalLength()),
      strokes: curves.map(path => style(path, "stroke")),
      pictures: [...inner.querySelectorAll("svg[role=img]")].map(svg => svg.getBoundingClientRect().width),
      page: style(inner.body, "backgroundColor"),
      card: inner.querySelector("figure") ? style(inner.querySelector("figure"), "backgroundColor") : null,
      text: style(inner.body, "color"),
      soft: inner.querySelector("dt") ? style(inner.querySelector("dt"), "color") : null,
      asked_for: view.performance.getEntriesByType("resource").map(entry => entry.name),
      scripts: inner.scripts.length,
    };
  });
  document.getElementById("found").textContent = JSON.stringify(found);
});
"""


def find() -> str:
    """The browser: what `LSVCR_BROWSER` names, else the first there is; without one the test is skipped."""
    named = os.environ.get("LSVCR_BROWSER")
    if named:
        assert shutil.which(named), f"LSVCR_BROWSER={named} is not a program"
        return named
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: install one of {', '.join(NAMES)}, or name one in LSVCR_BROWSER")
    return found


def dump(page: Path, folder: Path, *flags: str) -> str:
    """The document that the browser makes of a page, as HTML.

    Args:
        page: the file.
        folder: receives the browser's profile.
        flags: more of them.
    """
    command = [
        find(),
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        *flags,
        "--dump-dom",
        page.resolve().as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0 and done.stdout, done.stderr[-2000:]
    return done.stdout


def measure(source: str, widths: tuple[int, ...], folder: Path, *flags: str) -> list[dict[str, Any]]:
    """What a browser finds in a page, in a window of each width; the page's own folded parts are open.

    The page stands in frames of a page that measures: a headless window has a least width that phones are below, and
    the page itself runs no script.
    """
    opened = source.replace("<details>", "<details open>")
    frames = [
        f'<iframe width="{width}" height="800" style="border: 0" srcdoc="{html.escape(opened)}"></iframe>'
        for width in widths
    ]
    outer = folder / "measure.html"
    outer.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><script>{_MEASURE}</script><pre id="found"></pre>{"".join(frames)}',
        encoding="utf-8",
    )
    told = re.search(r'<pre id="found">(.*?)</pre>', dump(outer, folder, *flags), re.S)
    assert told and told.group(1), "the measuring page has not run"
    found: list[dict[str, Any]] = json.loads(html.unescape(told.group(1)))
    return found


def contrast(one: str, other: str) -> float:
    """Contrast of two `rgb(...)` colours, 1 to 21, as the web's accessibility guidelines define it."""
    lights = sorted((_luminance(one), _luminance(other)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
