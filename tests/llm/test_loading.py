"""Loading an LLM from every place it can come from, and what is said when it cannot."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GlmConfig, GlmForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from lsvcr.data.prompts import PromptBuilder
from lsvcr.llm import loading
from lsvcr.llm.families import LORA_TARGETS, lora_targets
from lsvcr.llm.loading import TINY, backbone, hidden_size, load_llm, output_head
from lsvcr.llm.tiny import tiny_tokenizer
from lsvcr.utils.errors import UserError
from tests.tiny_gguf import write_tiny_gguf

TEXT = "hello you 你好"


def logits(model, tokenizer, text=TEXT):
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits


@pytest.fixture(scope="module")
def tiny():
    return load_llm(TINY, dtype=torch.float32)


@pytest.fixture
def folder(tiny, tmp_path):
    path = tmp_path / "model"
    for part in tiny:
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_tiny_random_is_the_same_every_time_and_leaves_the_random_state_alone(tiny):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    model, tokenizer = load_llm(TINY, dtype=torch.float32)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(logits(model, tokenizer), logits(*tiny))
    assert not model.training
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT
    assert hidden_size(model) == 32 and backbone(model) is model.model and output_head(model) is model.lm_head


def test_weights_are_loaded_in_their_dtype_and_rotary_frequencies_stay_exact():
    model, tokenizer = load_llm(TINY)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.config._attn_implementation == "sdpa"
    assert (tokenizer.padding_side, tokenizer.pad_token_id) == ("left", 0)


@pytest.mark.parametrize("layout", ["safetensors", "sharded", "bin"])
def test_folders_of_every_layout(tiny, tmp_path, layout):
    model, tokenizer = tiny
    tokenizer.save_pretrained(tmp_path)
    if layout == "bin":
        model.config.save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        model.save_pretrained(tmp_path, max_shard_size="40KB" if layout == "sharded" else "1GB")
    assert (layout == "sharded") == (tmp_path / "model.safetensors.index.json").is_file()
    again, words = load_llm(str(tmp_path), dtype=torch.float32)
    assert torch.equal(logits(again, words), logits(*tiny))
    assert again.name_or_path == str(tmp_path)


def test_gguf_file_and_folder_with_a_lone_gguf_file(tiny, gguf_path):
    expected = logits(*tiny)
    for name in (gguf_path, gguf_path.parent):
        model, tokenizer = load_llm(str(name), dtype=torch.float32)
        # 1e-6 is not a float32, so the epsilon of the norms comes back rounded
        torch.testing.assert_close(logits(model, tokenizer)[..., :260], expected, atol=1e-5, rtol=1e-5)
        assert tokenizer.pad_token == "</s>"
    model, _ = load_llm(str(gguf_path), dtype=torch.float32, llm_layers=1)
    assert len(model.model.layers) == 1


def test_first_layers_give_the_states_the_whole_model_has_there(tiny, folder):
    inputs = tiny[1](TEXT, return_tensors="pt")
    with torch.no_grad():
        states = tiny[0](**inputs, output_hidden_states=True).hidden_states
    for name in (TINY, str(folder)):
        model, _ = load_llm(name, dtype=torch.float32, llm_layers=1)
        assert model.config.num_hidden_layers == len(model.model.layers) == 1
        with torch.no_grad():
            cut = backbone(model)(**inputs).last_hidden_state
        assert torch.equal(cut, tiny[0].model.norm(states[1]))


def test_per_layer_lists_are_cut_too(tiny, tmp_path):
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["full_attention", "sliding_attention"] * 2,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    tiny[1].save_pretrained(tmp_path)
    model, _ = load_llm(str(tmp_path), llm_layers=3)
    assert model.config.layer_types == ["full_attention", "sliding_attention", "full_attention"]


@pytest.mark.parametrize("layers", [3, -1])
def test_more_layers_than_there_are_is_an_error(layers):
    with pytest.raises(UserError, match="has 2 layers"):
        load_llm(TINY, llm_layers=layers)


def remove(*names):
    def change(folder):
        for name in names:
            (folder / name).unlink()

    return change


def rewrite_config(**values):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def drop_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def make_adapter(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")


def lose_shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").touch()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("config.json"), "has no config.json"),
        (remove("model.safetensors"), "has no weights"),
        (remove("tokenizer.json"), "has no tokenizer"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_text("version x"), "git-lfs pointer"),
        (make_adapter, "LoRA adapter"),
        (lose_shard, "lacks 1 of 2 weight files: model-2.safetensors"),
        (drop_weight, r"1 missing \(model.layers.1.mlp.up_proj.weight\)"),
        (cut_weights, "cannot be loaded"),
        (rewrite_config(hidden_size=64), "do not fit|cannot be loaded"),
        (rewrite_config(num_hidden_layers=1), "not understood"),
        (rewrite_config(model_type="glm", head_dim=8), "do not fit"),
        (
            rewrite_config(model_type="novel", auto_map={"AutoModel": "x.Y"}),
            "code of its own, which is never run",
        ),
        (rewrite_config(model_type="chatglm"), "lacks padded_vocab_size, ffn_hidden_size"),
        (rewrite_config(vocab_size=100), "do not fit|cannot be loaded"),
    ],
)
def test_broken_folders_are_named(folder, change, message):
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_llm(str(folder))
    assert str(folder) in str(caught.value)


def test_code_in_a_model_folder_is_not_run(folder):
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    rewrite_config(auto_map=auto)(folder)
    load_llm(str(folder))


@pytest.mark.parametrize(
    "name", ["smollm2_135m", "SmolLM2-135M", "tiny_random", "./nowhere", "/nowhere/model", "a.gguf"]
)
def test_misspelt_names(name):
    with pytest.raises(UserError, match="did you mean|does not exist"):
        load_llm(name)


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="neither a model folder nor a .gguf file"):
        load_llm(str(tmp_path / "notes.txt"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="broken.gguf cannot be loaded"):
        load_llm(str(tmp_path / "broken.gguf"))


@pytest.mark.parametrize("error", [OSError("we cannot connect"), RuntimeError("429 too many"), KeyError("x")])
def test_any_hub_failure_says_what_was_tried(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(loading, "snapshot_download", fail)
    for load in (load_llm, loading.load_config, loading.load_tokenizer):
        with pytest.raises(UserError, match="'somebody/model' is no folder here.*\n.*network") as caught:
            load("somebody/model")
        assert caught.value.__cause__ is error


def test_pad_token_is_an_existing_one(tiny, folder):
    words = tiny_tokenizer()
    words.pad_token = None
    words.save_pretrained(folder)
    model, tokenizer = load_llm(str(folder))
    assert tokenizer.pad_token == "</s>" and model.config.pad_token_id == 2
    assert model.get_input_embeddings().num_embeddings == 260
    words.eos_token = None
    words.save_pretrained(folder)
    with pytest.raises(UserError, match="neither a pad nor an eos"):
        load_llm(str(folder))


def test_a_tokenizer_without_an_end_token_ends_with_its_padding(tiny, folder):
    """A response needs an end; its label is told by its place, not by its id, so padding is not learned."""
    words = tiny_tokenizer()
    words.eos_token = None
    words.save_pretrained(folder)
    _, tokenizer = load_llm(str(folder))
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "<pad>")
    prompts = PromptBuilder(tokenizer, language="en", max_source=900, max_target=9, max_text=20)
    assert prompts.response("so calm")[-1] == tokenizer.pad_token_id


def test_tokenizer_of_another_model(folder):
    words = tiny_tokenizer()
    words.add_tokens(["lsvcr", "recommender"])
    words.save_pretrained(folder)
    with pytest.raises(UserError, match="262 ids but the model's embedding only 260 rows"):
        load_llm(str(folder))


def test_lora_targets_by_family(tiny):
    assert lora_targets(tiny[0]) == [name for name in LORA_TARGETS if name != "gate_up_proj"]
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    glm = GlmForCausalLM(
        GlmConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=8, pad_token_id=0)
    )
    assert lora_targets(glm) == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=4))
    assert lora_targets(gpt2) == "all-linear"


def test_other_packages_stay_quiet(folder, capfd, recwarn):
    logging.getLogger("transformers").setLevel(logging.WARNING)
    load_llm(str(folder), llm_layers=1)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
