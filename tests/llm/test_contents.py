"""The hash of an LLM that lies here: what changes it, what does not, and how often files are read."""

import os
import shutil
from pathlib import Path

import pytest

from lsvcr.llm import contents
from lsvcr.llm.contents import local_digest
from lsvcr.llm.loading import load_llm


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tiny LLM as a folder."""
    for part in load_llm("tiny-random"):
        part.save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def flip_last_byte(file: Path) -> None:
    """Another number in the last tensor, with the same size and the same time."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.with_name("other").write_bytes(content)
    file.with_name("other").replace(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "name", ["", "smollm2-135m", "tiny-random", "org/model", "/nowhere/llm", "nowhere.gguf"]
)
def test_what_is_known_by_its_name_has_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-random").mkdir()  # the names that are built in come first, as when an LLM is loaded
    (tmp_path / "tiny-random" / "config.json").write_text("{}")
    assert local_digest(name) == ""


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_weights_configuration_and_tokenizer_change_it(folder: Path, name: str) -> None:
    before = local_digest(str(folder))
    flip_last_byte(folder / name)
    assert local_digest(str(folder)) not in ("", before)


def test_place_and_other_files_do_not(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = local_digest(str(folder))
    (folder / "README.md").write_text("About it.")
    (folder / "runs").mkdir()
    (folder / "model-Q4.gguf").write_bytes(b"another form of it")
    assert local_digest(str(folder)) == before
    shutil.move(folder, tmp_path / "moved")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_digest("~/moved") == before
    (tmp_path / "moved" / "tokenizer.json").rename(tmp_path / "moved" / "added_tokens.json")
    assert local_digest("~/moved") not in ("", before)


def test_a_gguf_file_is_what_it_holds(tmp_path: Path) -> None:
    """In a folder alone, too, which then stands for it."""
    file = tmp_path / "one" / "model.GGUF"
    file.parent.mkdir()
    file.write_bytes(b"GGUF and weights")
    before = local_digest(str(file))
    shutil.copy(file, tmp_path / "renamed.gguf")
    assert before and local_digest(str(tmp_path / "renamed.gguf")) == before
    whole = local_digest(str(file.parent))
    flip_last_byte(file)
    assert local_digest(str(file)) not in ("", before) and local_digest(str(file.parent)) not in ("", whole)


def test_a_file_is_read_once_until_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = contents.sha256_file
    monkeypatch.setattr(contents, "sha256_file", lambda path: (read.append(Path(path).name), real(path))[1])
    first = local_digest(str(folder))
    assert sorted(read) == sorted(file.name for file in folder.iterdir())
    assert local_digest(str(folder)) == first and len(read) == len(set(read))
    read.clear()
    flip_last_byte(folder / "config.json")
    assert local_digest(str(folder)) != first and read == ["config.json"]
