"""Text vectors: what is pooled, and that neither batch nor order nor padding changes it."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Glm4Config, GlmConfig, GPT2Config, Qwen2Config, Qwen3Config

from lsvcr.llm.encoder import (
    BATCH_SHARE,
    encode,
    encode_inference,
    mean_pool,
    padded,
    token_budget_batches,
    tokenize,
)
from lsvcr.llm.families import backbone
from lsvcr.llm.loading import TINY, load_llm
from lsvcr.llm.lora import add_lora

TEXTS = ["a cat", "", "a much longer title about cats", "你好", "a cat", "z"]


@pytest.fixture(scope="module")
def tiny():
    return load_llm(TINY, dtype=torch.float32)


def test_tokenize_cuts_and_keeps_places(tiny):
    tokenizer = tiny[1]
    ids = tokenize(tokenizer, ["hello", "", " \n\t", "he"], max_tokens=3)
    h, e, first_l = tokenizer("hel")["input_ids"]
    assert ids == [[h, e, first_l], [], [], [h, e]]
    assert tokenize(tokenizer, ["", ""], 3) == [[], []]
    assert tokenize(tokenizer, [], 3) == []


def test_a_special_token_typed_in_a_text_stays_text(tiny):
    tokenizer = tiny[1]
    ids = tokenize(tokenizer, ["end</s>"], 64)[0]
    assert len(ids) == len("end</s>") and tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == "end</s>"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 70), max_size=60), st.integers(1, 200))
def test_token_budget_batches_cover_each_text_once_within_the_budget(lengths, budget):
    sizes = np.array(lengths, dtype=np.int64)
    batches = token_budget_batches(sizes, budget)
    placed = np.concatenate([np.empty(0, dtype=np.int64), *batches])
    assert sorted(placed.tolist()) == np.flatnonzero(sizes).tolist()
    assert (np.diff(sizes[placed]) <= 0).all()
    for batch in batches:
        assert len(batch) == 1 or len(batch) * sizes[batch].max() <= budget


def test_token_budget_batches_by_hand():
    # Three batches hold them, whichever two of 3, 2, 2 go together; 2 with 2 has no padding.
    batches = token_budget_batches(np.array([2, 5, 0, 3, 2]), budget=6)
    assert [batch.tolist() for batch in batches] == [[1], [3], [0, 4]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=9), st.sampled_from([6, 64, 128, 320]))
def test_no_way_to_cut_costs_less(lengths, budget):
    def cost(batches):
        return sum(max(batch) * len(batch) + max(1, budget // BATCH_SHARE) for batch in batches)

    ordered = sorted(lengths, reverse=True)
    ways = []
    for ends in product((False, True), repeat=len(ordered) - 1):
        cuts = [0, *(place + 1 for place, end in enumerate(ends) if end), len(ordered)]
        batches = [ordered[start:end] for start, end in pairwise(cuts)]
        if all(len(batch) == 1 or len(batch) * batch[0] <= budget for batch in batches):
            ways.append(cost(batches))
    chosen = token_budget_batches(np.array(lengths), budget)
    assert cost([[lengths[place] for place in batch] for batch in chosen]) == min(ways)


def test_padded_by_hand():
    tokens, mask = padded([[7, 8], [9, 4, 5]], pad_id=1)
    assert tokens.tolist() == [[7, 8, 1], [9, 4, 5]]
    assert mask.tolist() == [[True, True, False], [True, True, True]]


def test_mean_pool_leaves_padding_out_even_if_it_is_not_finite():
    states = torch.tensor([[[1.0], [3.0], [float("nan")]], [[5.0], [5.0], [5.0]]], dtype=torch.bfloat16)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    pooled = mean_pool(states, mask)
    assert pooled.tolist() == [[2.0], [0.0]] and pooled.dtype == torch.float32


def test_vectors_are_the_mean_of_the_post_norm_states(tiny):
    model, tokenizer = tiny
    ids = tokenize(tokenizer, TEXTS, 64)
    vectors = encode_inference(backbone(model), ids, pad_id=0, budget=40)
    for text_ids, vector in zip(ids, vectors, strict=True):
        if not text_ids:
            assert not vector.any()
            continue
        with torch.no_grad():
            states = model(torch.tensor([text_ids]), output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(vector, states[0].mean(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("budget", [1, 13, 10_000])
def test_neither_budget_nor_order_nor_pad_token_changes_a_vector(tiny, budget):
    model, tokenizer = tiny
    ids = tokenize(tokenizer, TEXTS, 64)
    expected = encode_inference(backbone(model), ids, pad_id=0, budget=64)
    order = [3, 0, 5, 1, 4, 2]
    shuffled = encode_inference(backbone(model), [ids[place] for place in order], pad_id=9, budget=budget)
    torch.testing.assert_close(shuffled, expected[order], atol=1e-5, rtol=1e-5)


SIZES = {"vocab_size": 300, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "pad_token_id": 0}


@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(**SIZES, **WIDTHS),
        Qwen2Config(**SIZES, **WIDTHS, use_sliding_window=True, sliding_window=4, max_window_layers=1),
        Qwen3Config(**SIZES, **WIDTHS, head_dim=8),
        GlmConfig(**SIZES, **WIDTHS, head_dim=8),
        Glm4Config(**SIZES, **WIDTHS, head_dim=8),
        GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4),
    ],
    ids=lambda config: config.model_type,
)
def test_padding_changes_no_vector_in_any_family(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    ids = [list(range(5, 5 + length)) for length in (9, 2, 5, 1, 9)]
    together = encode_inference(backbone(model), ids, pad_id=0, budget=999)
    for row, vector in zip(ids, together, strict=True):
        tokens = torch.tensor([row])
        with torch.no_grad():
            states = backbone(model)(
                input_ids=tokens, attention_mask=torch.ones_like(tokens)
            ).last_hidden_state
        torch.testing.assert_close(vector, states[0].mean(0), atol=1e-5, rtol=1e-5)


def test_nothing_to_encode(tiny):
    model, _ = tiny
    assert encode(backbone(model), [], pad_id=0, budget=10).shape == (0, 32)
    assert encode(backbone(model), [[], []], pad_id=0, budget=10).tolist() == [[0.0] * 32] * 2


def test_gradient_is_that_of_one_text_at_a_time(tiny):
    torch.manual_seed(0)
    model = add_lora(load_llm(TINY, dtype=torch.float32)[0], r=2, alpha=8, dropout=0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = tokenize(tiny[1], TEXTS, 64)
    weights = torch.randn(len(ids), 32)

    def gradients(loss):
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return torch.autograd.grad(loss, parameters)

    together = gradients((encode(backbone(model), ids, pad_id=0, budget=40) * weights).sum())
    alone = gradients(
        sum(
            (encode(backbone(model), [row], pad_id=0, budget=99) * weights[i]).sum()
            for i, row in enumerate(ids)
        )
    )
    for one, other in zip(together, alone, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_without_any_text_the_llm_is_read_once_and_the_vectors_are_zero(tiny):
    model = add_lora(load_llm(TINY, dtype=torch.float32)[0], r=2, alpha=8, dropout=0.0)
    calls = []
    backbone(model).register_forward_pre_hook(lambda *_: calls.append(1))
    for ids in ([[], []], []):
        vectors = encode(backbone(model), ids, pad_id=0, budget=40)
        assert torch.equal(vectors, torch.zeros(len(ids), 32))
        assert vectors.requires_grad
    assert len(calls) == 2


def test_first_layers_only(tiny):
    cut, tokenizer = load_llm(TINY, dtype=torch.float32, llm_layers=1)
    ids = tokenize(tokenizer, TEXTS, 64)
    vectors = encode_inference(backbone(cut), ids, pad_id=0, budget=99)
    assert vectors.shape == (6, 32)
    assert not torch.allclose(vectors, encode_inference(backbone(tiny[0]), ids, pad_id=0, budget=99))
