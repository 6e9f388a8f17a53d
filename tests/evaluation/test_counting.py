"""Ranks by counting: chunks, candidate order and duplicates change nothing."""

import numpy as np
import pytest
import torch

from lsvcr.evaluation.counting import count_catalogue, count_listed


def vectors(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_any_chunk_equals_sorting(chunk: int) -> None:
    users, items = vectors(20, 0), vectors(201, 1)
    targets = torch.arange(1, 21)
    counts = count_catalogue(users, items, torch.arange(20), targets, None, chunk)
    scores = (users.double() @ items.double().T)[:, 1:]
    expected = (scores > scores.gather(1, targets[:, None] - 1)).sum(1)
    assert counts.higher.tolist() == expected.tolist()
    assert counts.tied.tolist() == [1] * 20


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_scores_closer_than_float32_can_tell_are_told_apart(precision: str) -> None:
    """1,000 items around each target, at distances from a hundredth of a float32 step to a hundred."""
    users = vectors(3, 6)
    step = torch.finfo(torch.float32).eps
    shifts = torch.logspace(-2, 2, 500, dtype=torch.float64) * step
    near = torch.cat([1 + shifts, 1 - shifts])[:, None] * vectors(1, 7).double()
    items = torch.cat([vectors(1, 8), vectors(1, 7), near.float(), vectors(400, 9)])
    torch.set_float32_matmul_precision(precision)
    try:
        counts = count_catalogue(users, items, torch.arange(3), torch.ones(3, dtype=torch.int64), None, 64)
    finally:
        torch.set_float32_matmul_precision("highest")
    scores = (users.double() @ items[1:].double().T).float()
    assert counts.higher.tolist() == (scores > scores[:, :1]).sum(1).tolist()
    assert counts.tied.tolist() == (scores == scores[:, :1]).sum(1).tolist()
    assert min(counts.tied.tolist()) > 10


def test_padding_never_ranks() -> None:
    """Row 0 would win by far."""
    items = torch.tensor([[100.0], [1.0], [2.0]])
    counts = count_catalogue(torch.ones(1, 1), items, torch.tensor([0]), torch.tensor([2]), None, 10)
    assert (counts.higher.item(), counts.tied.item()) == (0, 1)


def test_equal_vectors_tie_wherever_they_stand() -> None:
    items = vectors(300, 2)
    items[[5, 77, 299]] = items[130].clone()
    counts = count_catalogue(vectors(8, 3), items, torch.arange(8), torch.full((8,), 130), None, 50)
    assert counts.tied.tolist() == [4] * 8


def test_seen_items_do_not_rank_but_a_seen_target_does() -> None:
    items = torch.tensor([[0.0], [5.0], [4.0], [3.0], [2.0]])
    seen = torch.tensor([0, 0]), torch.tensor([1, 3])
    one = torch.tensor([0])
    assert count_catalogue(torch.ones(1, 1), items, one, torch.tensor([4]), seen, 2).higher.item() == 1
    assert count_catalogue(torch.ones(1, 1), items, one, torch.tensor([3]), seen, 2).higher.item() == 1


def test_several_positives_of_a_row_rank_among_one_another() -> None:
    items = torch.tensor([[0.0], [5.0], [4.0], [4.0], [2.0]])
    counts = count_catalogue(torch.ones(1, 1), items, torch.tensor([0, 0]), torch.tensor([2, 4]), None, 3)
    assert counts.higher.tolist() == [1, 3]
    assert counts.tied.tolist() == [2, 1]


def test_lists_in_any_order_equal_the_catalogue() -> None:
    users, items = vectors(6, 4), vectors(51, 5)
    rows, positives = torch.arange(6).repeat_interleave(2), torch.arange(1, 13)
    whole = count_catalogue(users, items, rows, positives, None, 9)
    rng = np.random.default_rng(0)
    for _ in range(3):
        lists = torch.from_numpy(np.concatenate([rng.permutation(50) + 1 for _ in range(6)]))
        listed = count_listed(users, items, rows, positives, torch.arange(7) * 50, lists)
        assert listed.higher.tolist() == whole.higher.tolist()
        assert listed.tied.tolist() == whole.tied.tolist()


def test_a_positive_outside_its_list_is_marked() -> None:
    items = torch.tensor([[0.0], [3.0], [2.0], [1.0]])
    counts = count_listed(
        torch.ones(2, 1),
        items,
        torch.tensor([0, 1]),
        torch.tensor([3, 3]),
        torch.tensor([0, 2, 2]),
        torch.tensor([1, 3]),
    )
    assert counts.tied.tolist() == [1, 0]
    assert counts.higher.tolist() == [1, 0]


def test_long_lists_are_cut_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    users, items = vectors(5, 6), vectors(41, 7)
    arguments = (
        users,
        items,
        torch.arange(5),
        torch.arange(1, 6),
        torch.arange(6) * 40,
        (torch.arange(200) % 40) + 1,
    )
    whole = count_listed(*arguments)
    monkeypatch.setattr("lsvcr.evaluation.counting.PAIRS_AT_ONCE", 7)
    parts = count_listed(*arguments)
    assert parts.higher.tolist() == whole.higher.tolist()
    assert parts.tied.tolist() == whole.tied.tolist()
