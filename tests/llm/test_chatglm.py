"""ChatGLM folders as published: the original code's numbers come out, and what does not fit is named."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from lsvcr.llm.chatglm import glm_config
from lsvcr.llm.encoder import encode_inference
from lsvcr.llm.families import LORA_TARGETS, lora_targets, n_layers
from lsvcr.llm.loading import backbone, hidden_size, load_llm, output_head
from lsvcr.llm.lora import add_lora
from lsvcr.utils.errors import UserError

FOLDER = Path(__file__).parent / "chatglm3-tiny"
LIMIT = 1e-4
FUSED = "transformer.encoder.layers.1.self_attention.query_key_value.weight"


@pytest.fixture(scope="module")
def expected():
    with np.load(FOLDER / "expected.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(scope="module")
def loaded():
    return load_llm(str(FOLDER), dtype=torch.float32)


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(FOLDER, tmp_path / "model"))


def run(model, expected, batch="padded"):
    """Logits and last hidden states where the mask is 1, with the recorded ones."""
    mask = expected[f"{batch}_attention_mask"]
    with torch.no_grad():
        states = backbone(model)(
            input_ids=expected[f"{batch}_input_ids"], attention_mask=mask
        ).last_hidden_state
    found = {"logits": output_head(model)(states), "hidden": states}
    real = mask.bool()
    return {name: (value.detach()[real], expected[f"{batch}_{name}"][real]) for name, value in found.items()}


@pytest.mark.parametrize("batch", ["full", "padded"])
def test_the_original_codes_numbers(loaded, expected, batch):
    for found, wanted in run(loaded[0], expected, batch).values():
        torch.testing.assert_close(found, wanted, atol=LIMIT, rtol=0)


def test_position_ids_of_the_mask_change_nothing(loaded, expected):
    mask = expected["padded_attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    assert torch.equal(positions, expected["padded_position_ids"])
    with torch.no_grad():
        states = backbone(loaded[0])(
            input_ids=expected["padded_input_ids"], attention_mask=mask, position_ids=positions
        ).last_hidden_state
    real = mask.bool()
    torch.testing.assert_close(states[real], expected["padded_hidden"][real], atol=LIMIT, rtol=0)


def test_loss_and_pooled_texts(loaded, expected):
    model, tokenizer = loaded
    mask = expected["padded_attention_mask"].bool()
    with torch.no_grad():
        logits = model(expected["padded_input_ids"], attention_mask=mask.long()).logits
    labels = expected["padded_labels"]
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(loss, expected["padded_loss"], atol=LIMIT, rtol=0)
    # As the package reads texts: padded on the right, in batches of a budget, without mask.
    ids = [row[real].tolist() for row, real in zip(expected["padded_input_ids"], mask, strict=True)]
    pooled = encode_inference(backbone(model), ids, pad_id=tokenizer.pad_token_id, budget=100)
    torch.testing.assert_close(pooled, expected["padded_mean_pooled"], atol=LIMIT, rtol=0)


def test_ways_in_and_lora_targets(loaded):
    model, tokenizer = loaded
    assert (hidden_size(model), n_layers(model.config)) == (64, 3)
    assert backbone(model) is model.model and output_head(model) is model.lm_head
    assert lora_targets(model) == [name for name in LORA_TARGETS if name not in ("gate_proj", "up_proj")]
    assert len(model.lm_head.weight) == 768 and len(tokenizer) == 740
    assert (model.config.pad_token_id, model.config.eos_token_id, model.config.bos_token_id) == (0, 2, None)
    assert not model.training and model.name_or_path == str(FOLDER)
    model, _ = load_llm(str(FOLDER), dtype=torch.float32)
    learnt = [name for name, value in add_lora(model, 4, 8, 0.0).named_parameters() if value.requires_grad]
    assert len(learnt) == 3 * 6 * 2


def test_bf16_is_loaded_as_such_and_rotary_frequencies_stay_exact(loaded, expected):
    model, _ = load_llm(str(FOLDER))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    rotary, exact = model.model.rotary_emb.inv_freq, loaded[0].model.rotary_emb.inv_freq
    assert rotary.dtype == torch.float32 and torch.equal(rotary, exact)
    for found, wanted in run(model, expected).values():
        assert (found.float() - wanted).norm() < 0.03 * wanted.norm()


LAYOUTS = ["bin", "safetensors", "sharded bin", "sharded safetensors"]


def lay_out(folder, layout):
    """Weights as one file or as three, a layer each (the first has the rest too), in place of what is there."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    sharded, _, suffix = layout.rpartition(" ")
    stem, save = ("model", save_file) if suffix == "safetensors" else ("pytorch_model", torch.save)
    if not sharded:
        save(weights, folder / f"{stem}.{suffix}")
        return
    index = {}
    for layer in range(3):
        file = f"{stem}-{layer + 1:05d}-of-00003.{suffix}"
        names = [name for name in weights if f".{layer}." in name or (layer == 0 and ".layers." not in name)]
        save({name: weights[name] for name in names}, folder / file)
        index.update(dict.fromkeys(names, file))
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_files(loaded, folder, layout):
    lay_out(folder, layout)
    again, _ = load_llm(str(folder), dtype=torch.float32)
    state = loaded[0].state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_first_layers_need_no_file_of_the_others(loaded, folder, expected, layout):
    lay_out(folder, layout)
    for shard in folder.glob("*-00003-of-00003*"):
        shard.write_bytes(b"never opened")
    model, _ = load_llm(str(folder), dtype=torch.float32, llm_layers=1)
    assert model.config.num_hidden_layers == len(model.model.layers) == 1
    ids = expected["full_input_ids"]
    with torch.no_grad():
        states = loaded[0](ids, output_hidden_states=True).hidden_states
        cut = backbone(model)(ids).last_hidden_state
    assert torch.equal(cut, loaded[0].model.norm(states[1]))
    with pytest.raises(UserError, match="has 3 layers"):
        load_llm(str(folder), llm_layers=4)


def test_a_saved_copy_is_the_same_model_with_the_same_tokenizer(loaded, expected, tmp_path):
    for part in loaded:
        part.save_pretrained(tmp_path)
    model, tokenizer = load_llm(str(tmp_path), dtype=torch.float32)
    assert model.config.model_type == "glm"
    assert torch.equal(run(model, expected)["hidden"][0], run(loaded[0], expected)["hidden"][0])
    text = "小猫 philosophy </s>"
    assert tokenizer(text)["input_ids"] == loaded[1](text)["input_ids"]


def rewrite(path, **changes):
    """Change keys of a JSON file; None takes one away."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_configuration_key_by_key(folder):
    path = folder / "config.json"
    config = glm_config(path)
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (768, 64, 96)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (3, 4, 2)
    assert (config.head_dim, config.max_position_embeddings, config.rms_norm_eps) == (16, 512, 1e-5)
    assert config.attention_bias and not config.tie_word_embeddings and config.hidden_act == "silu"
    rewrite(path, pad_token_id=None, eos_token_id=None, quantization_bit=0, tie_word_embeddings=True)
    again = glm_config(path)
    assert (again.pad_token_id, again.eos_token_id, again.tie_word_embeddings) == (0, 2, False)


def test_dropout_that_is_left_out_is_said(folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lsvcr"), "propagate", True)
    load_llm(str(folder), dtype=torch.float32)
    assert caplog.text == ""
    rewrite(folder / "config.json", hidden_dropout=0.1)
    load_llm(str(folder), dtype=torch.float32)
    assert f"{folder / 'config.json'}: hidden_dropout 0.1 is left out" in caplog.text


@pytest.mark.parametrize("ratio", [1, 50])
def test_rope_ratio_multiplies_the_base(folder, loaded, expected, ratio):
    rewrite(folder / "config.json", rope_ratio=ratio)
    model, _ = load_llm(str(folder), dtype=torch.float32)
    exact = (10000.0 * ratio) ** -(torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, exact)
    found, wanted = run(model, expected, "full")["logits"]
    assert (ratio == 1) == torch.allclose(found, wanted, atol=LIMIT)


def test_head_widths_that_do_not_add_up_to_the_models_and_no_bias(folder):
    weights = load_file(folder / "model.safetensors")
    for name in list(weights):
        if name.endswith("query_key_value.bias"):
            del weights[name]
        elif name.endswith("query_key_value.weight"):
            weights[name] = torch.cat([weights[name], weights[name][:64]])  # kv_channels 24: 96 + 2 * 48 rows
        elif name.endswith("self_attention.dense.weight"):
            weights[name] = torch.cat([weights[name], weights[name][:, :32]], dim=1)
    save_file(weights, folder / "model.safetensors")
    rewrite(folder / "config.json", kv_channels=24, add_qkv_bias=False)
    model, _ = load_llm(str(folder), dtype=torch.float32)
    attention = model.model.layers[1].self_attn
    assert attention.q_proj.bias is None
    rows = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(rows, weights[FUSED])
    assert [len(part.weight) for part in (attention.q_proj, attention.k_proj, attention.v_proj)] == [
        96,
        48,
        48,
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_bit": 4}, "quantization_bit is 4.*not quantised"),
        ({"pre_seq_len": 128}, r"pre_seq_len is 128.*P-tuning"),
        ({"multi_query_attention": False}, "multi_query_attention is false.*as published"),
        ({"multi_query_attention": None}, "multi_query_attention is false"),
        ({"rmsnorm": False}, "rmsnorm is false"),
        ({"post_layer_norm": False}, "post_layer_norm is false"),
        ({"apply_residual_connection_post_layernorm": True}, "post_layernorm is true"),
        ({"add_bias_linear": True}, "add_bias_linear is true"),
        ({"num_layers": None, "kv_channels": None}, "lacks num_layers, kv_channels, so it is of no ChatGLM2"),
        ({"layernorm_epsilon": None}, "lacks layernorm_epsilon"),
        ({"add_qkv_bias": None}, "lacks add_qkv_bias"),
        ({"hidden_size": "64"}, 'hidden_size is "64", no positive number'),
        ({"num_layers": 0}, "num_layers is 0, no positive number"),
        ({"multi_query_group_num": 3}, "4 num_attention_heads cannot share 3"),
    ],
)
def test_configurations_that_cannot_be_read(folder, changes, message):
    rewrite(folder / "config.json", **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_llm(str(folder))
    assert str(folder / "config.json") in str(caught.value)


def change_weights(change):
    def apply(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return apply


def change_index(folder):
    lay_out(folder, "sharded safetensors")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"][FUSED]
    path.write_text(json.dumps(index))
    shard = folder / "model-00002-of-00003.safetensors"
    weights = load_file(shard)
    del weights[FUSED]
    save_file(weights, shard)


def save_code(folder):
    (folder / "model.safetensors").unlink()
    torch.save({FUSED: Path("code"), "more": torch.zeros(999)}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_weights(lambda weights: weights.pop(FUSED)), rf"1 missing \({FUSED}\)"),
        (change_index, rf"1 missing \({FUSED}\)"),
        (
            change_weights(lambda weights: weights.update({FUSED: torch.zeros(128, 60)})),
            rf"1 of another shape \({FUSED} \(128, 60\), wanted \(128, 64\)\)",
        ),
        (
            change_weights(lambda weights: weights.update({f"{FUSED}_scale": torch.zeros(128)})),
            rf"1 not understood \({FUSED}_scale\)",
        ),
        (lambda folder: rewrite(folder / "config.json", num_layers=2), r"7 not understood \(.*layers.2"),
        (lambda folder: rewrite(folder / "config.json", num_layers=4), r"7 missing \(.*layers.3"),
        (lambda folder: rewrite(folder / "config.json", add_qkv_bias=False), "3 not understood.*bias"),
        (save_code, "pytorch_model.bin is damaged or holds more than tensors"),
        (lambda folder: (folder / "tokenizer.model").unlink(), "no tokenizer"),
        (
            lambda folder: (folder / "tokenizer.model").rename(folder / "vocab.txt"),
            "tokenizer.model does not",
        ),
    ],
)
def test_folders_that_cannot_be_read(folder, change, message):
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_llm(str(folder), dtype=torch.float32)
    assert str(folder) in str(caught.value)


def test_code_in_the_folder_is_not_run(folder):
    for name in ("configuration_chatglm", "modeling_chatglm", "tokenization_chatglm"):
        (folder / f"{name}.py").write_text("raise SystemExit('ran')\n")
    auto = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "ChatGLMTokenizer", "auto_map": auto, "padding_side": "right"})
    )
    assert load_llm(str(folder))[1].padding_side == "left"
