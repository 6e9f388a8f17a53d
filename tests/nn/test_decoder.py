"""Blocks with rotary positions and gates, against their formulas number by number."""

import math

import pytest
import torch
import torch.nn.functional as F

from lsvcr.nn.decoder import GatedBlock, Packing, RotaryAttention, gated_inner, rotary_turns, turn


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


def packing(lengths: list[int], head_width: int, both_ways: bool = False) -> Packing:
    """Of sequences of these lengths, padded to the longest and one more."""
    steps = torch.arange(max(lengths) + 1)
    return Packing.of(steps < torch.tensor(lengths)[:, None], head_width, both_ways)


def test_a_block_is_its_formula() -> None:
    """One head, step by step; nothing in it has a bias."""
    torch.manual_seed(1)
    block = GatedBlock(4, 1, 6, 0.0, 0.0).double()
    x = torch.randn(3, 4, dtype=torch.float64)

    def norm(v: torch.Tensor) -> torch.Tensor:
        return v / (v.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    turns = rotary_turns(3, 4)
    q, k, v = block.attention.inputs(norm(x)).chunk(3, dim=-1)
    q, k = turn(q, turns), turn(k, turns)
    seen = [torch.softmax(q[i] @ k[: i + 1].T / 2, dim=-1) @ v[: i + 1] for i in range(3)]
    mixed = x + torch.stack(seen) @ block.attention.output.weight.T
    gate, value = (norm(mixed) @ block.up.weight.T).chunk(2, dim=-1)
    wanted = mixed + (F.silu(gate) * value) @ block.down.weight.T
    torch.testing.assert_close(block(x, packing([3], 4)), wanted)
    assert not [name for name, _ in block.named_parameters() if name.endswith("bias")]


@pytest.mark.parametrize("both_ways", [False, True])
def test_a_sequence_is_alone_in_its_pack(both_ways: bool) -> None:
    """Lengths 3, 0, 5 and 1 together, and each by itself."""
    torch.manual_seed(2)
    block, lengths = GatedBlock(8, 2, 8, 0.0, 0.0), [3, 0, 5, 1]
    x = torch.randn(9, 8)
    together = block(x, packing(lengths, 4, both_ways)).split(lengths)
    for own, part in zip(x.split(lengths), together, strict=True):
        if len(own):
            torch.testing.assert_close(part, block(own, packing([len(own)], 4, both_ways)))


def test_causal_and_both_ways() -> None:
    torch.manual_seed(3)
    attention = RotaryAttention(8, 2, 0.0)
    x = torch.randn(5, 8)
    later = torch.cat([x[:3], x[3:] + 1.0])
    one_way, both_ways = packing([5], 4), packing([5], 4, both_ways=True)
    torch.testing.assert_close(attention(x, one_way)[:3], attention(later, one_way)[:3])
    assert not torch.allclose(attention(x, both_ways)[:3], attention(later, both_ways)[:3])


def test_spread_and_packed_are_inverse() -> None:
    own = packing([2, 1], 4)
    x = torch.arange(6.0).view(3, 2)
    assert own.spread(x).tolist() == [[[0, 1], [2, 3], [0, 0]], [[4, 5], [0, 0], [0, 0]]]
    assert torch.equal(own.packed(own.spread(x)), x)


def test_a_head_has_an_even_width() -> None:
    with pytest.raises(ValueError, match="twice 2 attention heads"):
        RotaryAttention(6, 2, 0.0)
    assert [gated_inner(width) for width in (16, 64, 96)] == [48, 176, 256]
