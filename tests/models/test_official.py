from pathlib import Path

import pytest
import torch
from torch import Tensor

from lsvcr.llm.aligned import AlignedHeads
from lsvcr.models import checkpoint
from lsvcr.models.official import native_lora, read_official, renamed
from lsvcr.models.sr import SRModel
from lsvcr.utils.errors import UserError

LAYER = [
    ("attention.query", "multi_head_attention.query"),
    ("attention.key", "multi_head_attention.key"),
    ("attention.value", "multi_head_attention.value"),
    ("attention.output", "multi_head_attention.out_linear"),
    ("attention.norm", "multi_head_attention.LayerNorm"),
    ("feed_forward.up", "feed_forward.linear_1"),
    ("feed_forward.down", "feed_forward.linear_2"),
    ("feed_forward.norm", "feed_forward.LayerNorm"),
]
NAMES = {
    "head.inner": "llm_emb_mlp.0",
    "head.outer": "llm_emb_mlp.2",
    "contrast": "contrast_adapter",
    "sr.adapter": "reccom.llm_adapter",
    "sr.merge": "reccom.pc_merge",
    "sr.video_position": "reccom.pposition_embedding",
    "sr.comment_position": "reccom.cposition_embedding",
    "sr.video_norm": "reccom.photo_layernorm",
    "sr.comment_norm": "reccom.comment_layernorm",
    "sr.video_join": "reccom.p_linear",
    "sr.comment_join": "reccom.c_linear",
    "sr.rec_pooling.inner": "reccom.rec_att.attn.0",
    "sr.rec_pooling.norm": "reccom.rec_att.attn.2",
    "sr.rec_pooling.score": "reccom.rec_att.attn.4",
}
NAMES |= {
    f"sr.comm_rank_attention.{ours}": f"reccom.comm_rank_att.{theirs}"
    for ours, theirs in (
        ("query", "query"),
        ("key", "key"),
        ("value", "value"),
        ("output", "out_linear"),
        ("norm", "LayerNorm"),
    )
}
for side, theirs_side in (("video", "phis"), ("comment", "chis")):
    for ours, theirs in LAYER:
        for i in (0, 1):
            NAMES[f"sr.{side}_encoder.{i}.{ours}"] = f"reccom.{theirs_side}_encoder.layer.{i}.{theirs}"
        NAMES[f"sr.{side}_cross.{ours}"] = f"reccom.{theirs_side}_mix_layer.layer.0.{theirs}"


def heads() -> AlignedHeads:
    torch.manual_seed(0)
    made = AlignedHeads(SRModel(text_width=8, hidden=8, inner=16, max_position=6), 16, 8)
    for value in made.parameters():
        value.data.normal_()
    return made


def official(made: AlignedHeads, between: str = "") -> dict[str, Tensor]:
    """The tensors as the official implementation saves them."""
    found = {}
    for name, value in made.state_dict().items():
        module, _, kind = name.rpartition(".")
        if kind not in ("center", "scale"):
            found[f"base_model.model.{NAMES[module]}.{between}{kind}"] = value
    return found


@pytest.mark.parametrize("between", ["", "modules_to_save.default."])
def test_every_tensor_of_sr_model_and_heads_arrives(tmp_path: Path, between: str):
    made = heads()
    torch.save(official(made, between), tmp_path / "adapter_model.bin")
    read = read_official(tmp_path)
    assert not read.lora
    fresh = AlignedHeads(SRModel(text_width=8, hidden=8, inner=16, max_position=6), 16, 8)
    assert checkpoint.load_into(fresh, read.heads, source="here") == []
    for name, value in made.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    pooled = torch.randn(3, 16)
    assert torch.equal(fresh.texts(pooled), made.texts(pooled))


def test_a_fused_adapter_becomes_three_that_add_the_same():
    stem = "base_model.model.transformer.encoder.layers.1.self_attention.query_key_value"
    a, b = torch.randn(2, 16), torch.randn(16 + 2 * 4, 2)
    dense = "base_model.model.transformer.encoder.layers.1.mlp.dense_4h_to_h"
    read = renamed(
        {
            f"{stem}.lora_A.weight": a,
            f"{stem}.lora_B.default.weight": b,
            f"{dense}.lora_A.weight": a,
            f"{dense}.lora_B.weight": b,
        },
        "here",
    )
    native = native_lora(read.lora, 16, 4)
    under = "base_model.model.model.layers.1"
    rows = [
        native[f"{under}.self_attn.{x}_proj.lora_B.weight"]
        @ native[f"{under}.self_attn.{x}_proj.lora_A.weight"]
        for x in "qkv"
    ]
    assert torch.equal(torch.cat(rows), b @ a)
    assert torch.equal(native[f"{under}.mlp.down_proj.lora_B.weight"], b)
    assert len(native) == 8
    with pytest.raises(UserError, match=r"has 24 rows, this LLM's fused projection has 32"):
        native_lora(read.lora, 16, 8)


def test_what_is_no_official_checkpoint(tmp_path: Path):
    with pytest.raises(UserError, match="holds no adapter_model.bin or adapter_model.safetensors"):
        read_official(tmp_path)
    file = tmp_path / "adapter_model.bin"
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="is no file of tensors"):
        read_official(file)
    torch.save({"step": 3}, file)
    with pytest.raises(UserError, match="does not hold tensors by name"):
        read_official(file)
    for name in (
        "reccom.phis_encoder.layer.0.feed_forward.linear_3.weight",
        "reccom.chis_mix_layer.layer.1.x.y.weight",
        "lm_head.weight",
    ):
        torch.save({f"base_model.model.{name}": torch.zeros(1)}, file)
        with pytest.raises(UserError, match="1 tensors that an official LSVCR checkpoint does not have"):
            read_official(file)
