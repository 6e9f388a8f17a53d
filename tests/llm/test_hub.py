"""Hub ids, from a cache laid out as the hub's client lays it out, without a network."""

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file

from lsvcr.llm import loading
from lsvcr.llm.loading import TINY, load_config, load_llm, load_tokenizer
from lsvcr.utils.errors import UserError

CHATGLM = Path(__file__).parent / "chatglm3-tiny"
COMMIT = "a" * 40
TEXT = "小猫 philosophy"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no way to a hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def put(cache: Path, name: str, files: Path) -> Path:
    """Lay a model's files out as a download does: blobs, links to them, and the commit that `main` is."""
    model = cache / f"models--{name.replace('/', '--')}"
    for part in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (model / part).mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(path for path in files.iterdir() if path.is_file())):
        shutil.copy(file, model / "blobs" / str(number))
        (model / "snapshots" / COMMIT / file.name).symlink_to(f"../../blobs/{number}")
    return model / "snapshots" / COMMIT


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The patterns of all downloads."""
    patterns: list[list[str]] = []
    real = loading.snapshot_download

    def download(name: str, allow_patterns: list[str]) -> str:
        patterns.append(allow_patterns)
        return real(name, allow_patterns=allow_patterns)

    monkeypatch.setattr(loading, "snapshot_download", download)
    return patterns


def test_a_published_chatglm_by_its_id(cache: Path, asked: list[list[str]]) -> None:
    """Its config.json asks for code of its own; what is loaded is what the folder gives."""
    folder = put(cache, "somebody/chatglm3-tiny", CHATGLM)
    code = (folder / "modeling_chatglm.py", folder / "configuration_chatglm.py")
    for file in code:
        file.write_text("raise SystemExit('ran')\n")
    model, tokenizer = load_llm("somebody/chatglm3-tiny", dtype=torch.float32)
    expected, words = load_llm(str(CHATGLM), dtype=torch.float32)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in expected.state_dict().items())
    assert tokenizer(TEXT)["input_ids"] == words(TEXT)["input_ids"]
    assert model.name_or_path == "somebody/chatglm3-tiny"
    assert asked == [["*.json", "*.model", "*.txt", "*.jinja", "model*.safetensors"]]


def test_configuration_and_tokenizer_alone_need_no_weights(cache: Path, asked: list[list[str]]) -> None:
    folder = put(cache, "somebody/chatglm3-tiny", CHATGLM)
    (folder / "model.safetensors").unlink()
    assert load_config("somebody/chatglm3-tiny").model_type == "glm"
    assert load_tokenizer("somebody/chatglm3-tiny")(TEXT)["input_ids"]
    assert asked == [["*.json", "*.model", "*.txt", "*.jinja"]] * 2
    with pytest.raises(UserError, match="has no weights"):
        load_llm("somebody/chatglm3-tiny")


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_other_families_and_both_formats_of_weights(
    cache: Path, tmp_path: Path, asked: list[list[str]], layout: str
) -> None:
    model, tokenizer = load_llm(TINY, dtype=torch.float32)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    if layout == "bin":
        file = tmp_path / "model" / "model.safetensors"
        torch.save(load_file(file), tmp_path / "model" / "pytorch_model.bin")
        file.unlink()
    put(cache, "somebody/tiny", tmp_path / "model")
    again, _ = load_llm("somebody/tiny", dtype=torch.float32)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert [patterns[4:] for patterns in asked] == [["model*.safetensors"], ["pytorch_model*.bin"]][
        : len(asked)
    ]
    assert len(asked) == (1 if layout == "safetensors" else 2)


def test_what_is_neither_here_nor_in_reach(cache: Path) -> None:
    with pytest.raises(
        UserError, match="'somebody/absent' is no folder here, and as a hub id it could not be loaded"
    ):
        load_llm("somebody/absent")
