import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lsvcr.llm.aligned import AlignedHeads
from lsvcr.llm.encoder import encode, tokenize
from lsvcr.llm.families import backbone
from lsvcr.llm.loading import load_llm
from lsvcr.models.official import renamed
from lsvcr.models.sr import SRModel
from lsvcr.settings import ConvertSettings, EmbedSettings, RankSettings
from lsvcr.training.convert import convert
from lsvcr.training.embedder import checkpoint_folder, load_embedder
from lsvcr.training.rank_handover import find_stage_one
from lsvcr.utils.errors import UserError
from tests.models.test_official import official

CHATGLM = Path(__file__).parents[1] / "llm" / "chatglm3-tiny"
RANK = 2


def legacy_adapter() -> dict[str, torch.Tensor]:
    """LoRA on every fused projection, as peft saves it on the published model."""
    config = json.loads((CHATGLM / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["ffn_hidden_size"]
    q = config["num_attention_heads"] * config["kv_channels"]
    fused = q + 2 * config["multi_query_group_num"] * config["kv_channels"]
    shapes = {
        "self_attention.query_key_value": (hidden, fused),
        "self_attention.dense": (q, hidden),
        "mlp.dense_h_to_4h": (hidden, 2 * inner),
        "mlp.dense_4h_to_h": (inner, hidden),
    }
    torch.manual_seed(1)
    found = {}
    for layer in range(config["num_layers"]):
        for name, (width, rows) in shapes.items():
            stem = f"base_model.model.transformer.encoder.layers.{layer}.{name}"
            found[f"{stem}.lora_A.weight"] = torch.randn(RANK, width) / 8
            found[f"{stem}.lora_B.weight"] = torch.randn(rows, RANK) / 8
    return found


def llm_width() -> int:
    return int(json.loads((CHATGLM / "config.json").read_text())["hidden_size"])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An official adapter_model.bin: SR model, heads and LoRA on the published ChatGLM."""
    torch.manual_seed(0)
    heads = AlignedHeads(SRModel(text_width=8, hidden=8, inner=16, max_position=20), llm_width(), 8)
    torch.save({**official(heads), **legacy_adapter()}, tmp_path / "adapter_model.bin")
    return tmp_path / "adapter_model.bin"


def converted(checkpoint: Path, out: Path, **options) -> Path:
    settings = {"checkpoint": str(checkpoint), "out": str(out), "model_name_or_path": str(CHATGLM)}
    return convert(ConvertSettings(**(settings | options)))


def merged(alpha: float) -> torch.nn.Module:
    """The published model with the adapter added to its fused matrices by hand."""
    from lsvcr.models.official import native_lora

    model, _ = load_llm(str(CHATGLM), dtype=torch.float32)
    config = model.config
    rows = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim)
    native = native_lora(renamed(legacy_adapter(), "here").lora, *rows)
    weights = dict(model.named_parameters())
    for name, a in native.items():
        if ".lora_A." in name:
            target = name.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            weights[target].data += alpha / RANK * native[name.replace("lora_A", "lora_B")] @ a
    return model


def test_an_official_checkpoint_embeds_texts_as_it_did(tmp_path: Path, checkpoint: Path):
    run = converted(checkpoint, tmp_path / "run")
    found = find_stage_one(str(run))
    assert found is not None and found.folder == run / "best"
    embedder = load_embedder(EmbedSettings(checkpoint=str(run), bf16=False), checkpoint_folder(str(run)))
    texts = ["people like philosophy", "a b c", "你好"]
    ids = embedder.ids(texts)
    plain, tokenizer = merged(alpha=32.0), load_llm(str(CHATGLM), dtype=torch.float32)[1]
    assert ids == tokenize(tokenizer, texts, 64)
    pooled = encode(backbone(plain), ids, pad_id=tokenizer.pad_token_id, budget=10_000)
    heads = AlignedHeads(SRModel(text_width=8, hidden=8, inner=16, max_position=20), llm_width(), 8)
    heads.load_state_dict(load_file(run / "best" / "sr.safetensors"))
    with torch.no_grad():
        vectors, full = zip(*(embedder.vectors([row]) for row in ids), strict=True)
        assert torch.allclose(torch.cat(full), pooled, atol=1e-4)
        assert torch.allclose(torch.cat(vectors), heads.head(pooled), atol=1e-4)


def test_alpha_and_dropout_come_from_the_file_beside(tmp_path: Path, checkpoint: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "lora_dropout": 0.1}))
    run = converted(checkpoint, tmp_path / "run")
    config = json.loads((run / "best" / "adapter" / "adapter_config.json").read_text())
    assert (config["lora_alpha"], config["lora_dropout"], config["r"]) == (4, 0.1, RANK)
    assert config["target_modules"] == ["down_proj", "gate_up_proj", "k_proj", "o_proj", "q_proj", "v_proj"]


def test_lora_alone_becomes_a_peft_adapter(tmp_path: Path):
    from lsvcr.llm.lora import load_adapter

    torch.save(legacy_adapter(), tmp_path / "adapter_model.bin")
    folder = converted(tmp_path, tmp_path / "adapter")
    model, tokenizer = load_llm(str(CHATGLM), dtype=torch.float32)
    adapted = load_adapter(model, folder)
    ids = tokenize(tokenizer, ["a text"], 64)
    with torch.no_grad():
        found = encode(backbone(adapted), ids, pad_id=0, budget=1000)
        expected = encode(backbone(merged(alpha=32.0)), ids, pad_id=0, budget=1000)
    assert torch.allclose(found, expected, atol=1e-4)


def test_what_does_not_fit_is_named(tmp_path: Path, checkpoint: Path):
    content = torch.load(checkpoint)
    fused = "base_model.model.transformer.encoder.layers.0.self_attention.query_key_value"
    cases = [
        ({f"{fused}.lora_B.weight": torch.zeros(3, RANK)}, "has 3 rows, this LLM's fused projection has"),
        ({"base_model.model.reccom.pc_merge.weight": torch.zeros(3, 3)}, "wrong shape: sr.merge.weight"),
        ({f"{fused.replace('.0.', '.9.')}.lora_A.weight": torch.zeros(RANK, 4)}, "unknown to the model"),
        ({"base_model.model.reccom.other.weight": torch.zeros(1)}, "does not have"),
    ]
    for change, message in cases:
        torch.save({**content, **change}, checkpoint)
        with pytest.raises(UserError, match=message):
            converted(checkpoint, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    del content["base_model.model.reccom.p_linear.bias"]
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match="missing: sr.video_join.bias"):
        converted(checkpoint, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        converted(checkpoint, tmp_path / "run")
    assert RankSettings().heads == ConvertSettings().heads
