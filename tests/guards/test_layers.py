"""The layers of the house: imports run downward only, and never in a circle."""

import graphlib
from pathlib import Path

import pytest

from tests.guards.source import ENTRIES, ROOT, imports_of, module_name, modules, package_files, resolve

LAYERS = [
    {"schema", "settings", "utils", "nn"},
    {"losses", "data", "serving"},
    {"models"},
    {"llm", "evaluation"},
    {"training", "baselines"},
    {"experiments", "export"},
    {"cli", "__main__", "recommend"},
]
"""From the bottom up. Parts of one layer may use each other, as long as no circle comes of it."""

LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
TORCH_IN_DATA = ("align", "rank")
"""Files of `data` whose name begins so make the samples of a stage and may use torch; the rest may not."""


def part_of(module: str) -> str:
    """`lsvcr.data.store` -> `data`; the package itself -> ``."""
    return module.split(".")[1] if "." in module else ""


def test_every_part_has_its_place():
    unknown = {part_of(name) for name in modules()} - set(LEVELS) - {""}
    assert not unknown, f"give these a layer in LAYERS: {unknown}"


@pytest.mark.parametrize("path", package_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downward(path: Path):
    known = modules()
    own = part_of(module_name(path))
    for name, line in imports_of(path):
        target = resolve(name, known)
        if target is None or part_of(target) in ("", own):
            continue
        other = part_of(target)
        assert own and LEVELS[other] <= LEVELS[own], (
            f"{path}:{line}: {own} must not import {other}, which is above it"
        )


def test_no_circle_between_parts():
    known = modules()
    graph: dict[str, set[str]] = {}
    for path in package_files():
        own = part_of(module_name(path))
        targets = {resolve(name, known) for name, _ in imports_of(path)}
        graph.setdefault(own, set()).update(part_of(t) for t in targets if t and part_of(t) not in ("", own))
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which shows the circle


def test_no_circle_between_modules():
    known = modules()
    graph = {
        module_name(path): {resolve(name, known) for name, _ in imports_of(path)} for path in package_files()
    }
    # A folder's __init__ may gather names from its files, which may import each other through it by their full names.
    edges = {
        name: {t for t in targets if t and t != name and not name.startswith(t + ".")}
        for name, targets in graph.items()
    }
    tuple(graphlib.TopologicalSorter(edges).static_order())


def test_data_uses_torch_only_to_make_samples():
    for path in package_files():
        parts = module_name(path).split(".")
        if parts[1:2] != ["data"] or parts[-1].startswith(TORCH_IN_DATA):
            continue
        for name, line in imports_of(path):
            assert name.split(".")[0] != "torch", f"{path}:{line}: only data/align* and data/rank* use torch"


def test_serving_stands_alone():
    known = modules()
    allowed = {"lsvcr.schema", "lsvcr.settings", "lsvcr.utils.io", "lsvcr.utils.errors", "lsvcr"}
    for path in package_files():
        if part_of(module_name(path)) != "serving":
            continue
        for name, line in imports_of(path):
            assert name.split(".")[0] not in ("torch", "transformers"), (
                f"{path}:{line}: serving runs without {name}"
            )
            target = resolve(name, known)
            assert target is None or target in allowed or part_of(target) == "serving", (
                f"{path}:{line}: {target}"
            )


def test_entries_are_thin():
    found = [path for path in ENTRIES if path.exists()]
    for path in found:
        assert len(path.read_text().splitlines()) <= 60, f"{path} belongs into the library"
    assert found
