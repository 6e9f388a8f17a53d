"""What the guards read: the package's files as syntax trees, and the imports in them."""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lsvcr"
ENTRIES = [ROOT / "train.py", ROOT / "finetune.py"]


def package_files() -> list[Path]:
    """All Python files of the package."""
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def repository_files() -> list[Path]:
    """Files that git keeps or would add; all files below the root where there is no git."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        hidden = {".git", ".venv", "__pycache__"}
        return sorted(
            p for p in ROOT.rglob("*") if p.is_file() and not hidden & set(p.relative_to(ROOT).parts)
        )
    return sorted(ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file())


@cache
def tree_of(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    """Dotted name of a file of the package; a folder's `__init__` has the folder's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    return {module_name(path): path for path in package_files()}


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names a file imports, in functions too, with the line; `from a import b` gives `a.b`."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute in this package"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def resolve(name: str, known: dict[str, Path]) -> str | None:
    """The module of the package that an imported name is or lives in; None for a name from outside."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None
