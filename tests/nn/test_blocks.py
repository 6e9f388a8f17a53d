"""Masks, ragged groups, pooling, attention and cosine."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lsvcr.nn.attention import CausalLayer, CrossLayer, MultiHeadAttention
from lsvcr.nn.dropout import Dropout
from lsvcr.nn.masks import open_first
from lsvcr.nn.pooling import AdditivePooling
from lsvcr.nn.ragged import segment_mean
from lsvcr.nn.similarity import cosine_logits, unit
from lsvcr.nn.transformer import Block


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=12), st.integers(0, 1000))
def test_segment_mean_is_the_mean_of_each_group(members, seed):
    values = torch.randn(len(members), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = segment_mean(values, torch.tensor(members, dtype=torch.int64), 5)
    for group in range(5):
        rows = [values[i] for i, member in enumerate(members) if member == group]
        expected = torch.stack(rows).mean(0) if rows else torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(found[group], expected)


def test_segment_mean_has_the_gradient_of_a_mean():
    values = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    segment = torch.tensor([2, 0, 2, 2])
    assert torch.autograd.gradcheck(lambda v: segment_mean(v, segment, 4), (values,))


def test_open_first_touches_only_empty_rows():
    mask = torch.tensor([[False, False], [False, True], [True, False]])
    assert open_first(mask).tolist() == [[True, False], [False, True], [True, False]]


def test_additive_pooling_weighs_real_positions_only():
    torch.manual_seed(0)
    pool = AdditivePooling(4, 0.5).eval()
    states = torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    found = pool(states, mask)
    logits = pool.score(torch.nn.functional.gelu(pool.norm(pool.inner(states)))).squeeze(-1)
    for row, real in ((0, 5), (1, 2)):
        weights = logits[row, :real].softmax(0)
        torch.testing.assert_close(found[row], (weights[:, None] * states[row, :real]).sum(0))
    assert torch.equal(found[2], torch.zeros(4))


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_attention_drops_weights_in_training_and_is_else_the_same(p, monkeypatch):
    torch.manual_seed(0)
    layer = MultiHeadAttention(8, 2, 0.0, p)
    states, others = torch.randn(3, 5, 8), torch.randn(3, 4, 8)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    for attend in (lambda: layer.causal(states), lambda: layer(states, others, mask)):
        expected = layer.eval() and attend()
        dropped = layer.train() and attend()
        nothing = layer.norm(states + layer.output(torch.zeros(8)))
        assert torch.equal(dropped, nothing) if p == 1.0 else not torch.allclose(dropped, expected)
        with monkeypatch.context() as patched:
            patched.setattr(Dropout, "forward", lambda self, x: x)
            torch.testing.assert_close(attend(), expected)


def test_attention_equals_the_formula():
    torch.manual_seed(0)
    layer = MultiHeadAttention(6, 3, 0.5, 0.5).double().eval()
    queries, keys = torch.randn(2, 4, 6).double(), torch.randn(2, 5, 6).double()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]], dtype=torch.bool)
    found = layer(queries, keys, mask)
    q, k, v = layer.query(queries), layer.key(keys), layer.value(keys)
    for row in range(2):
        for step in range(4):
            parts = []
            for head in range(3):
                size = slice(2 * head, 2 * head + 2)
                logits = k[row, :, size] @ q[row, step, size] / math.sqrt(2)
                weights = logits[mask[row]].softmax(0)
                parts.append(weights @ v[row, mask[row]][:, size])
            expected = layer.norm(queries[row, step] + layer.output(torch.cat(parts)))
            torch.testing.assert_close(found[row, step], expected)


def test_a_row_without_a_real_key_is_finite_and_independent_of_the_padding():
    torch.manual_seed(0)
    layer = CrossLayer(8, 2, 16, 0.0, 0.0).eval()
    states, none = torch.randn(2, 3, 8), torch.zeros(2, 5, dtype=torch.bool)
    first, second = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 5, 8)
    found = layer(states, first, none)
    assert found.isfinite().all()
    torch.testing.assert_close(found, layer(states, second, none))
    torch.testing.assert_close(found, layer(states, first[:, :0], none[:, :0]))
    found.sum().backward()
    assert torch.equal(first.grad, torch.zeros_like(first))


def test_causal_layer_sees_no_later_step():
    torch.manual_seed(0)
    layer = CausalLayer(8, 2, 16, 0.0, 0.0).double()
    states = torch.randn(1, 6, 8).double().requires_grad_()
    for step in range(6):
        (grad,) = torch.autograd.grad(layer(states)[0, step].pow(2).sum(), states)
        assert (grad[0, : step + 1].abs().sum(-1) > 0).all()
        assert grad[0, step + 1 :].abs().sum() == 0


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    layer = CausalLayer(8, 2, 16, 0.3, 0.3)
    states = torch.randn(2, 4, 8)
    assert not torch.equal(layer(states), layer(states))
    layer.eval()
    assert torch.equal(layer(states), layer(states))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_dropout_drops_its_share_and_keeps_the_mean_and_the_gradient(p):
    torch.manual_seed(0)
    x = torch.full((1003, 101), 2.0, requires_grad=True)
    y = Dropout(p)(x)
    y.sum().backward()
    kept = y != 0
    deviation = 5 * math.sqrt(p * (1 - p) / x.numel())
    assert abs(kept.float().mean().item() - (1 - p)) <= deviation
    assert torch.allclose(y[kept], torch.tensor(2 / (1 - p) if p < 1 else 0.0), rtol=1e-4)
    assert torch.equal(x.grad, y.detach() / 2)


def test_dropout_is_drawn_anew_from_the_global_generator_without_a_pattern():
    torch.manual_seed(1)
    ones, dropout = torch.ones(4096, 64), Dropout(0.5)
    first, second = dropout(ones), dropout(ones)
    torch.manual_seed(1)
    assert torch.equal(dropout(ones), first) and not torch.equal(first, second)
    # Four numbers come of one draw: neighbours must be as independent as any.
    centred = (first > 0).float() - 0.5
    for step in (1, 2, 3, 4):
        assert abs((centred[:, step:] * centred[:, :-step]).mean().item()) < 5 * 0.25 / math.sqrt(4096 * 60)


@pytest.mark.parametrize("norm", ["first", "last"])
def test_more_dropout_acts_inside_the_feed_forward_layer_and_behind_the_block(norm):
    blocks = {more: Block(8, 2, 16, 0.25, 0.0, norm, "gelu", more) for more in (False, True)}
    blocks[True].load_state_dict(blocks[False].state_dict())
    x, zeros = torch.randn(50, 20, 8), {}
    for more, block in blocks.items():
        block.down.register_forward_pre_hook(lambda _, given, more=more: zeros.update({more: given[0] == 0}))
        share = 0.25 if more else 0.0
        assert (block.train()(x) == 0).float().mean().item() == pytest.approx(share, abs=0.02)
        assert zeros[more].float().mean().item() == pytest.approx(share, abs=0.02)
    torch.testing.assert_close(blocks[True].eval()(x), blocks[False].eval()(x))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="10 is not a multiple of 4"):
        MultiHeadAttention(10, 4, 0.0, 0.0)


def test_cosine_logits_are_float32_cosines_over_the_temperature():
    users, items = torch.tensor([[3.0, 4, 0, 0]]), torch.tensor([[6.0, 8, 0, 0], [-4, 3, 0, 0], [0, 0, 0, 0]])
    expected = torch.tensor([[1 / 0.07, 0, 0]])
    torch.testing.assert_close(cosine_logits(users, items, 0.07), expected)
    torch.testing.assert_close(cosine_logits(users, items[None], 0.07), expected)
    assert cosine_logits(users.bfloat16(), items.bfloat16(), 0.07).dtype == torch.float32
    a, b = torch.randn(5, 4), torch.randn(7, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = cosine_logits(a, b, 0.07)
    assert torch.equal(inside, cosine_logits(a, b, 0.07))


def test_unit_keeps_zero_vectors_and_their_gradient_finite():
    x = torch.zeros(1, 3, requires_grad=True)
    cosine_logits(x, torch.randn(4, 3), 0.07).sum().backward()
    assert torch.equal(unit(x), torch.zeros(1, 3)) and x.grad.isfinite().all()
    torch.testing.assert_close(unit(torch.tensor([1e-4, 0.0])), torch.tensor([1.0, 0.0]))
