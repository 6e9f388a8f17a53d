"""Run folders written by hand, and a page read back: for the tests of `lsvcr report`."""

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from lsvcr.experiments.report import write_report
from lsvcr.settings import AlignSettings, RankSettings, ReportSettings

VOID = {"meta", "link", "wbr"}
HASH = "f" * 64


def write_log(run: Path, lines: list[dict[str, Any]], end: str = "\n") -> None:
    """A metrics log; `end` closes the last line."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + end)


def write_manifest(run: Path, name: str, manifest: dict[str, Any]) -> None:
    """The manifest of a checkpoint `name`."""
    (run / name).mkdir(parents=True, exist_ok=True)
    (run / name / "manifest.json").write_text(json.dumps(manifest))


def stage_one(step: int = 4, **changes: Any) -> dict[str, Any]:
    """A stage-one manifest after `step` of 8 steps; `changes` are settings."""
    chosen = {"data_path": "nowhere/demo-data", "model_name_or_path": "tiny-random", **changes}
    return {
        "kind": "stage-one",
        "step": step,
        "steps": 8,
        "global_batch": 4,
        "processes": 2,
        "seed": 2024,
        "settings": dataclasses.asdict(AlignSettings(**chosen)),
        "data_hash": HASH,
        "metrics": {"lm": 5.25, "selection": 0.5},
        "trained_parameters": 27737,
        "versions": {"lsvcr": "0.1.0", "torch": "2.9.9"},
    }


def stage_two(epoch: int = 3, step: int = 30, **changes: Any) -> dict[str, Any]:
    """A stage-two manifest after `epoch` of at most 50 epochs; `changes` are settings."""
    return {
        "kind": "stage-two",
        "task": "comm_rank",
        "settings": dataclasses.asdict(RankSettings(data_path="nowhere/demo-data", **changes)),
        "seed": 7,
        "data_hash": HASH,
        "parent": {"path": "ckpt/somewhere/best", "manifest": HASH},
        "texts": None,
        "processes": 1,
        "versions": {"lsvcr": "0.1.0"},
        "progress": {"epoch": epoch, "step": step, "best": 0.4, "best_epoch": 2, "without_gain": 1},
        "metrics": {"train/loss": 3.5, "val/ndcg@5": 0.4},
    }


def write_tests(run: Path) -> None:
    """Test figures of a finished stage-two run; its slice has no rows."""
    whole = {"rows": 40, "metrics": {"ndcg@10": {"value": 0.5, "interval": [0.25, 0.75]}}}
    empty = {"rows": 0, "metrics": {"ndcg@10": {"value": None, "interval": None}}}
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.json").write_text(
        json.dumps({"protocols": {"full": {**whole, "slices": {"cold": empty}}}})
    )


class Element:
    """An element of a page: name, attributes, and the text in it and below."""

    def __init__(self, name: str, attributes: dict[str, str]) -> None:
        self.name, self.attributes, self.text = name, attributes, ""


class Page(HTMLParser):
    """A page as a parser sees it; elements that are not closed in their order are an error."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.elements, self._open = source, [], []
        self.feed(source)
        self.close()
        assert not self._open, f"never closed: {[element.name for element in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().name == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, name: str, css: str = "") -> list[Element]:
        """Elements of a name, and of a class if one is given, in order."""
        classes = [(e, e.attributes.get("class", "").split()) for e in self.elements if e.name == name]
        return [element for element, own in classes if not css or css in own]

    @property
    def text(self) -> str:
        """All that a person can read, folded parts included."""
        return next(element.text for element in self.elements if element.name == "body")

    def facts(self) -> dict[str, str]:
        """Terms with their values; of equal terms the first."""
        pairs = zip(self.all("dt"), self.all("dd"), strict=True)
        return {term.text: value.text for term, value in reversed(list(pairs))}

    def warnings(self) -> list[str]:
        """What the page warns of."""
        return [element.text for element in self.all("p", "warning")]

    def figure(self, title: str) -> list[Element]:
        """The elements of the chart of this title."""
        figures = [i for i, element in enumerate(self.elements) if element.name == "figure"]
        ends = [*figures[1:], len(self.elements)]
        for start, end in zip(figures, ends, strict=True):
            own = self.elements[start:end]
            caption = next(element for element in own if element.name == "figcaption")
            if caption.text.removesuffix(" log scale") == title:
                return own
        raise AssertionError(f"no chart {title}")


def report(run: Path, **settings: str) -> Page:
    """Write the page of a run and read it back."""
    return Page(write_report(ReportSettings(run=str(run), **settings)).read_text(encoding="utf-8"))
