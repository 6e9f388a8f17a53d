"""Stage one in small with every family of LLM: it trains, and a saved run comes back with the same vectors."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Glm4Config,
    GlmConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from lsvcr.data.align import AlignCollator
from lsvcr.data.prompts import PromptBuilder
from lsvcr.data.text_bank import TextBank
from lsvcr.llm.aligned import AlignedHeads, AlignedModel
from lsvcr.llm.encoder import tokenize
from lsvcr.llm.families import backbone
from lsvcr.llm.loading import hidden_size, load_llm
from lsvcr.llm.lora import add_lora, delta_norm, load_adapter, save_adapter
from lsvcr.llm.tiny import tiny_tokenizer
from lsvcr.models.sr import SRModel
from tests.llm.test_aligned import COMMENTS, SAMPLES, TITLES, Table

CHATGLM = Path(__file__).parent / "chatglm3-tiny"
SIZES = {"vocab_size": 260, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "max_position_embeddings": 4096}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES = {
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "llama": LlamaConfig,
    "glm": GlmConfig,
    "glm4": Glm4Config,
    "chatglm": None,
}


def model_folder(family: type[PretrainedConfig] | None, path: Path) -> str:
    """A folder with a random model of a family; the recorded one of ChatGLM as published."""
    if family is None:
        return str(CHATGLM)
    torch.manual_seed(0)
    config = family(**SIZES, **WIDTHS, **IDS, initializer_range=0.1)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


def make_heads(width: int) -> AlignedHeads:
    torch.manual_seed(5)
    sr = SRModel(text_width=12, hidden=16, inner=32, dropout=0.0, attention_dropout=0.0, max_position=9)
    return AlignedHeads(sr, width, 12)


def aligned(llm, heads: AlignedHeads, pad_id: int) -> AlignedModel:
    weights = {"lm": 1.0, "rec": 1.0, "contrast": 0.5}
    return AlignedModel(llm, heads, pad_id=pad_id, text_token_budget=64, weights=weights)


def make_collator(tokenizer) -> AlignCollator:
    bank = TextBank(Table(TITLES), Table(COMMENTS), lambda texts: tokenize(tokenizer, texts, 20))
    prompts = PromptBuilder(tokenizer, language="en", max_source=900, max_target=40, max_text=20)
    return AlignCollator(bank, prompts)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_three_steps_save_and_reload(tmp_path, family):
    name = model_folder(family, tmp_path / "model")
    llm, tokenizer = load_llm(name, dtype=torch.float32)
    collate, width, pad_id = make_collator(tokenizer), hidden_size(llm), int(tokenizer.pad_token_id)
    batch = collate(SAMPLES)
    adapted = add_lora(llm, r=4, alpha=8, dropout=0.0)
    model = aligned(adapted, make_heads(width), pad_id)
    untrained = model.text_vectors(batch.texts).detach()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(3):
        loss = model(batch, None)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and delta_norm(adapted) > 0
    unmoved = [name for name, p in adapted.named_parameters() if "lora_B" in name and not p.any()]
    assert unmoved == []

    save_adapter(adapted, tmp_path / "adapter")
    heads = make_heads(width)
    heads.load_state_dict(model.heads.state_dict())
    again = aligned(load_adapter(load_llm(name, dtype=torch.float32)[0], tmp_path / "adapter"), heads, pad_id)
    with torch.no_grad():
        trained, reloaded = model.vectors(batch, None), again.vectors(batch, None)
        assert torch.equal(again.text_vectors(batch.texts), model.text_vectors(batch.texts))
    for part in ("users", "others", "llm_users", "targets", "lm"):
        assert torch.equal(getattr(reloaded, part), getattr(trained, part)), part
    assert not torch.allclose(again.text_vectors(batch.texts), untrained, atol=1e-3)


def test_chatglm_prompts_texts_and_responses():
    """`[gMASK] sop` opens a prompt and a text of the text branch once, the end token ends a response, and the
    user vector is the state of the last prompt token."""
    llm, tokenizer = load_llm(str(CHATGLM), dtype=torch.float32)
    batch = make_collator(tokenizer)(SAMPLES)
    opening = tokenizer("")["input_ids"]
    model = aligned(llm, make_heads(64), 0)
    with torch.no_grad():
        users = model.vectors(batch, None).llm_users
    for row in range(len(batch)):
        prompt = batch.sequences[row][: -batch.response_lengths[row]]
        response = batch.response(row)
        assert prompt[:2] == opening and not set(opening) & set(prompt[2:])
        assert response[-1] == tokenizer.eos_token_id and not {*opening, 2} & set(response[:-1])
        with torch.no_grad():
            last = backbone(llm)(torch.tensor([prompt])).last_hidden_state[0, -1]
        torch.testing.assert_close(users[row], model.heads.contrast(last), atol=1e-4, rtol=1e-4)
    assert all(text[:2] == opening and opening[1] not in text[2:] for text in batch.texts if text)
