"""House rules that a tool does not check: documented, small, quiet, and of no particular machine."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guards.source import ENTRIES, ROOT, package_files, repository_files, tree_of

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 100
SPEAKERS = {ROOT / "lsvcr" / "cli.py", ROOT / "lsvcr" / "__main__.py"}
"""Files whose business is to write to a person's terminal."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
FILES = pytest.mark.parametrize("path", package_files(), ids=lambda path: str(path.relative_to(ROOT)))


def definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Classes and functions of a module and methods of its classes, with dotted names."""
    for node in body:
        if isinstance(node, Definition):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{prefix}{node.name}.")


def is_public(name: str) -> bool:
    """No part of the dotted name begins with an underscore."""
    return not any(part.startswith("_") for part in name.split("."))


@FILES
def test_what_is_public_is_documented(path: Path):
    tree = tree_of(path)
    assert ast.get_docstring(tree), f"{path} does not say what it is"
    for name, node in definitions(tree.body):
        # Overloads and property setters are documented where they are implemented or read.
        inherited = any(ast.unparse(mark).endswith(("overload", ".setter")) for mark in node.decorator_list)
        assert not is_public(name) or inherited or ast.get_docstring(node), f"{path}:{node.lineno}: {name}"


@FILES
def test_files_and_functions_are_small(path: Path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{path} has {lines} lines: split it by ideas"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{path}:{node.lineno}: {node.name} has {length} lines"


@FILES
def test_the_library_does_not_print(path: Path):
    if path in SPEAKERS:
        return
    for node in ast.walk(tree_of(path)):
        is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        assert not is_print, f"{path}:{node.lineno}: use a logger, or return the text"


@FILES
def test_nothing_is_imported_wholesale_or_left_for_later(path: Path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{path}:{node.lineno}: import *"
        assert not (isinstance(node, ast.Raise) and "NotImplementedError" in ast.dump(node)), (
            f"{path}:{node.lineno}"
        )
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        assert not re.search(r"#.*\b(TODO|FIXME|XXX)\b", line), f"{path}:{number}: {line.strip()}"


def test_nothing_is_pickled():
    for path in [*package_files(), *ENTRIES]:
        names = {
            alias.name
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert not {"pickle", "joblib", "dill"} & names, f"{path}: artefacts are safetensors, npy and JSON"


def test_no_file_knows_the_machine_it_was_written_on():
    # Put together here, so that this file does not contain what it looks for.
    places = ["/ho" + r"me/\w", "/ro" + "ot/", "/Us" + r"ers/\w", "/wo" + "rk/", "/op" + "t/wheels"]
    pattern = re.compile(r"(?<![\w.])(" + "|".join(places) + ")")
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # no text
        found = pattern.search(text)
        assert not found, f"{path}, line {text[: found.start()].count(chr(10)) + 1}: {found.group()}"


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0" in text and "END OF TERMS AND CONDITIONS" in text
