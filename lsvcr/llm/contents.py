"""What an LLM on this machine holds, as one hash: a folder or a file keeps its name when its weights change."""

import json
import threading
from functools import cache
from pathlib import Path

from lsvcr.llm.loading import SMOLLM2, TINY
from lsvcr.utils.io import sha256_file, sha256_text

_OF_A_FOLDER = ("*.safetensors", "*.bin", "*.json", "*.model", "*.txt", "*.jinja")
"""Weights, configuration and tokenizer."""

_Stamp = tuple[str, int, int, int]
"""Path, size, time of the last change in nanoseconds, inode."""

_one_reads = threading.Lock()
"""Who asks for a file that another thread reads waits for its hash."""


def local_digest(name_or_path: str) -> str:
    """Hexadecimal SHA-256 of the files that `load_llm` reads here; empty for what is known by its name alone.

    Each file is read once a process, and again where it has changed.

    Args:
        name_or_path: as `load_llm` takes it. Hub ids, `smollm2-135m` and `tiny-random` are known by their names, and so
            is what does not exist.
    """
    if name_or_path in ("", SMOLLM2, TINY):
        return ""
    path = Path(name_or_path).expanduser()
    files = [path] if path.is_file() else _files_of(path)
    if not files:
        return ""
    # A lone file is what it holds, whatever it is called; in a folder a name says what a file is for.
    with _one_reads:
        listed = [("" if file == path else file.name, _file_digest(_stamp(file))) for file in files]
    return sha256_text(json.dumps(listed))


def _files_of(folder: Path) -> list[Path]:
    """In the order of their names; without a configuration a folder stands for its GGUF file."""
    patterns = _OF_A_FOLDER if (folder / "config.json").is_file() else ("*.[gG][gG][uU][fF]",)
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def _stamp(file: Path) -> _Stamp:
    about = file.stat()
    return str(file), about.st_size, about.st_mtime_ns, about.st_ino


@cache
def _file_digest(stamp: _Stamp) -> str:
    return sha256_file(stamp[0])
