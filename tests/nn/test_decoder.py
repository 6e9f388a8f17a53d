"""Blocks with rotary positions and gates, against their formulas number by number."""

import math

import pytest
import torch
import torch.nn.functional as F

from lsvcr.nn.decoder import GatedBlock, RotaryAttention, gated_inner, rotary_turns, turn


def test_a_turn_by_hand() -> None:
    """Width 4: pairs (0, 2) and (1, 3); at step 2 the first turns by 2, the second by 2 / 100."""
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(3, 4)
    found = turn(x, rotary_turns(3, 4))
    torch.testing.assert_close(found[0], x[0])
    for (i, j), angle in {(0, 2): 2.0, (1, 3): 0.02}.items():
        a, b = float(x[2, i]), float(x[2, j])
        assert float(found[2, i]) == pytest.approx(a * math.cos(angle) - b * math.sin(angle), rel=1e-5)
        assert float(found[2, j]) == pytest.approx(b * math.cos(angle) + a * math.sin(angle), rel=1e-5)


def test_scores_depend_on_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 8)
    turns = rotary_turns(40, 8)
    scores = turn(q.expand(40, 8), turns) @ turn(k.expand(40, 8), turns).T
    for distance in (-7, 0, 3):
        line = scores.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scores[0, 0], scores[0, 9])


def test_a_block_is_its_formula() -> None:
    """One head, step by step; nothing in it has a bias."""
    torch.manual_seed(1)
    block = GatedBlock(4, 1, 6, 0.0, 0.0).double()
    x = torch.randn(1, 3, 4, dtype=torch.float64)

    def norm(v: torch.Tensor) -> torch.Tensor:
        return v / (v.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    turns = rotary_turns(3, 4)
    q, k, v = block.attention.inputs(norm(x[0])).chunk(3, dim=-1)
    q, k = turn(q, turns), turn(k, turns)
    seen = [
        torch.softmax(q[i] @ k[: i + 1].T / 2, dim=-1) @ v[: i + 1] for i in range(3)
    ]  # sqrt of width 4 is 2
    mixed = x[0] + torch.stack(seen) @ block.attention.output.weight.T
    gate, value = (norm(mixed) @ block.up.weight.T).chunk(2, dim=-1)
    wanted = mixed + (F.silu(gate) * value) @ block.down.weight.T
    torch.testing.assert_close(block(x, turns)[0], wanted)
    assert not [name for name, _ in block.named_parameters() if name.endswith("bias")]


def test_causal_and_visible() -> None:
    torch.manual_seed(2)
    attention, turns = RotaryAttention(8, 2, 0.0), rotary_turns(5, 4)
    x = torch.randn(2, 5, 8)
    later = x.clone()
    later[:, 3:] += 1.0
    torch.testing.assert_close(attention(x, turns)[:, :3], attention(later, turns)[:, :3])
    visible = torch.tensor([[True, True, True, False, False]] * 2)
    both = attention(x, turns, visible), attention(later, turns, visible)
    torch.testing.assert_close(both[0][:, :3], both[1][:, :3])
    visible[:, 3] = True
    assert not torch.allclose(attention(x, turns, visible)[:, :3], attention(later, turns, visible)[:, :3])


def test_a_head_has_an_even_width() -> None:
    with pytest.raises(ValueError, match="twice 2 attention heads"):
        RotaryAttention(6, 2, 0.0)
    assert [gated_inner(width) for width in (16, 64, 96)] == [48, 176, 256]
