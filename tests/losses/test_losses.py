"""Every loss against its formula, and the cases that must not break it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lsvcr.losses.alignment import behaviour_contrast, preference_contrast, recommendation_contrast
from lsvcr.losses.id_text import id_text_contrast
from lsvcr.losses.info_nce import info_nce
from lsvcr.losses.ranking import comment_softmax, full_softmax, sampled_softmax
from tests.reference import losses_plain

TAU = 0.3


def vectors(*shape: int, seed: int = 0, grad: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(grad)


def close(found: torch.Tensor, expected: float) -> None:
    assert found.shape == ()
    assert found.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_info_nce_equals_the_formula_and_never_drops_the_label():
    queries, keys = vectors(3, 4), vectors(5, 4, seed=1)
    labels = torch.tensor([4, 0, 2])
    dropped = [{0, 4}, set(), {1, 2, 3}]
    mask = torch.tensor([[j in row for j in range(5)] for row in dropped])
    expected = losses_plain.info_nce(queries.numpy(), keys.numpy(), labels.tolist(), dropped, TAU)
    close(info_nce(queries, keys, labels, mask, TAU), expected)
    everything = torch.ones(3, 5, dtype=torch.bool)
    close(info_nce(queries, keys, labels, everything, TAU), 0.0)


def test_info_nce_without_rows_is_zero_with_a_gradient():
    queries, keys = vectors(0, 4, grad=True), vectors(5, 4, grad=True)
    loss = info_nce(queries, keys, torch.zeros(0, dtype=torch.int64), temperature=TAU)
    loss.backward()
    assert loss.item() == 0 and torch.equal(keys.grad, torch.zeros_like(keys))


def test_half_precision_vectors_give_single_precision_losses():
    queries, keys = vectors(3, 4).bfloat16(), vectors(3, 4, seed=1).bfloat16()
    found = info_nce(queries, keys, torch.arange(3))
    assert found.dtype == torch.float32
    assert torch.equal(found, info_nce(queries.float(), keys.float(), torch.arange(3)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(found, info_nce(queries.float(), keys.float(), torch.arange(3)))


def test_behaviour_contrast_equals_the_formula():
    llm, own, other = vectors(4, 5), vectors(4, 5, seed=1), vectors(4, 5, seed=2)
    expected = losses_plain.behaviour(llm.numpy(), own.numpy(), other.numpy(), TAU)
    close(behaviour_contrast(llm, own, other, TAU), expected)
    close(behaviour_contrast(llm, own, own, TAU), float(np.log(2)))
    assert behaviour_contrast(llm[:0], own[:0], other[:0]).item() == 0


def test_preference_contrast_equals_the_formula_without_a_process_group():
    sr, llm = vectors(4, 5), vectors(4, 5, seed=1)
    close(preference_contrast(sr, llm, TAU), losses_plain.preference(sr.numpy(), llm.numpy(), TAU))


def test_recommendation_contrast_drops_repeated_targets():
    users, targets = vectors(4, 5), vectors(4, 5, seed=1)
    targets[3] = targets[0]
    keys = torch.tensor([11, 7, 9, 11])
    expected = losses_plain.recommendation(users.numpy(), targets.numpy(), keys.tolist(), TAU)
    close(recommendation_contrast(users, targets, keys, temperature=TAU), expected)


def test_recommendation_contrast_drops_a_rows_other_positives():
    users, targets, keys = vectors(3, 5), vectors(3, 5, seed=1), torch.tensor([1, 2, 3])
    positives = torch.tensor([[1, 3], [2, -1], [3, -1]])
    found = recommendation_contrast(users, targets, keys, positives, TAU)
    dropped = [{2}, set(), set()]
    close(found, losses_plain.info_nce(users.numpy(), targets.numpy(), [0, 1, 2], dropped, TAU))


def joined(others: torch.Tensor):
    """A stand-in for the gather of process 0 of two: own rows first, then the other process's."""

    def gather(x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 1 and x.shape[0] == 1 and x.dtype == torch.int64:
            return torch.cat([x, torch.tensor([others.shape[0]])])  # row counts
        return torch.cat([x, others])

    return gather


def test_negatives_come_from_all_processes_of_any_size():
    sr, llm, far = vectors(2, 5), vectors(2, 5, seed=1), vectors(3, 5, seed=2)
    found = preference_contrast(sr, llm, TAU, gather=joined(far))
    parts = [
        losses_plain.info_nce(a.numpy(), torch.cat([b, far]).numpy(), [0, 1], [set(), set()], TAU)
        for a, b in ((sr, llm), (llm, sr))
    ]
    close(found, sum(parts) / 2)


# id-text contrast


@pytest.mark.parametrize("rows", [2, 3, 5, 40, 100])
def test_id_text_with_few_rows_takes_all_others(rows):
    ids, texts = vectors(rows, 4), vectors(rows, 4, seed=1)
    close(
        id_text_contrast(ids, texts, temperature=TAU), losses_plain.id_text(ids.numpy(), texts.numpy(), TAU)
    )


@pytest.mark.parametrize("rows", [0, 1])
def test_id_text_without_another_row_is_zero_with_a_gradient(rows):
    ids, texts = vectors(rows, 4, grad=True), vectors(rows, 4, grad=True)
    loss = id_text_contrast(ids, texts)
    loss.backward()
    assert loss.item() == 0 and torch.equal(ids.grad, torch.zeros_like(ids))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 230), st.sampled_from([1, 7, 64, 256]), st.integers(0, 99))
def test_id_text_works_for_any_number_of_rows(rows, block, seed):
    ids, texts = vectors(rows, 4, grad=True), vectors(rows, 4, seed=1, grad=True)
    keys = torch.arange(rows) % max(2, rows // 2)
    draw = torch.Generator().manual_seed(seed)
    loss = id_text_contrast(ids, texts, 99, draw, TAU, keys, block)
    loss.backward()
    assert loss.isfinite() and ids.grad.isfinite().all() and texts.grad.isfinite().all()


def test_id_text_sample_equals_the_formula_for_the_drawn_rows():
    rows, count, block = 12, 3, 5
    ids, texts = vectors(rows, 4), vectors(rows, 4, seed=1)
    drawn = torch.randint(rows, (3, count), generator=torch.Generator().manual_seed(4)).tolist()
    total = 0.0
    for i in range(rows):
        others = [j for j in drawn[i // block] if j % 6 != i % 6]
        for a, b in ((ids, texts), (texts, ids)):
            total += losses_plain.pick(a[i].numpy(), b[i].numpy(), [b[j].numpy() for j in others], TAU)
    generator = torch.Generator().manual_seed(4)
    found = id_text_contrast(ids, texts, count, generator, TAU, torch.arange(rows) % 6, block)
    close(found, total / rows / 2)


def test_id_text_shared_draws_have_the_mean_of_separate_draws():
    ids, texts = vectors(400, 8), vectors(400, 8, seed=1)
    generator = torch.Generator().manual_seed(0)
    shared, separate = (
        np.array([id_text_contrast(ids, texts, 20, generator, TAU, None, b).item() for _ in range(60)])
        for b in (50, 1)
    )
    error = np.hypot(shared.std(), separate.std()) / np.sqrt(60)
    assert abs(shared.mean() - separate.mean()) < 4 * error


def test_id_text_draw_is_a_function_of_the_generator():
    ids, texts = vectors(300, 4), vectors(300, 4, seed=1)
    first, second, third = (
        id_text_contrast(ids, texts, 99, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(first, second) and not torch.equal(first, third)


# ranking


def test_full_softmax_equals_the_formula_and_never_counts_padding():
    users, items, targets = vectors(3, 4), vectors(6, 4, seed=1), torch.tensor([1, 5, 2])
    items[0] = users[0] * 100  # the padding row, would win
    expected = losses_plain.catalogue(users.numpy(), items.numpy(), targets.tolist(), TAU)
    close(full_softmax(users, items, targets, TAU), expected)


@pytest.mark.parametrize("max_logits", [1, 9, 10, 23, 34, 35])
def test_full_softmax_in_blocks_is_the_same_with_the_same_gradient(max_logits):
    targets = torch.tensor([1, 5, 2, 2, 4, 3, 1])
    results = []
    for limit in (10**9, max_logits):
        users, items = vectors(7, 4, grad=True), vectors(6, 4, seed=1, grad=True)
        loss = full_softmax(users, items, targets, TAU, limit)
        loss.backward()
        results.append((loss.detach(), users.grad, items.grad))
    for whole, blocked in zip(*results, strict=True):
        torch.testing.assert_close(whole, blocked, rtol=1e-10, atol=1e-12)


def test_sampled_softmax_with_the_whole_catalogue_is_the_full_one():
    users, items, targets = vectors(3, 4), vectors(6, 4, seed=1), torch.tensor([1, 5, 2])
    drawn = torch.arange(1, 6)
    found = sampled_softmax(users, items[targets], items[drawn], drawn == targets[:, None], TAU)
    close(found, losses_plain.catalogue(users.numpy(), items.numpy(), targets.tolist(), TAU))


def test_sampled_softmax_without_a_drop_mask():
    users, positives, negatives = vectors(2, 4), vectors(2, 4, seed=1), vectors(3, 4, seed=2)
    expected = [
        losses_plain.pick(u.numpy(), p.numpy(), list(negatives.numpy()), TAU)
        for u, p in zip(users, positives, strict=True)
    ]
    close(sampled_softmax(users, positives, negatives, temperature=TAU), sum(expected) / 2)


def test_comment_softmax_masks_padding_and_other_positives():
    users, comments = vectors(3, 4), vectors(3, 4, 4, seed=1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    total = 0.0
    for row, columns in enumerate([[1, 2, 3], [2], []]):
        negatives = [comments[row, j].numpy() for j in columns]
        total += losses_plain.pick(users[row].numpy(), comments[row, 0].numpy(), negatives, TAU)
    close(comment_softmax(users, comments, mask, TAU), total / 3)
    close(comment_softmax(users, comments, ~mask & mask, TAU), 0.0)


def check(loss) -> None:
    assert torch.autograd.gradcheck(loss, (vectors(4, 3, grad=True), vectors(4, 3, seed=1, grad=True)))


def test_gradients_are_those_of_the_formulas():
    labels, keys = torch.tensor([2, 0, 1, 3]), torch.tensor([5, 5, 6, 7])
    check(lambda a, b: info_nce(a, b, labels, temperature=TAU))
    check(lambda a, b: behaviour_contrast(a, b, b.flip(0), TAU))
    check(lambda a, b: preference_contrast(a, b, TAU))
    check(lambda a, b: recommendation_contrast(a, b, keys, temperature=TAU))
    check(lambda a, b: id_text_contrast(a, b, 2, torch.Generator().manual_seed(3), TAU, block=3))
    check(lambda a, b: full_softmax(a, b, torch.tensor([1, 2, 3, 1]), TAU))
    check(lambda a, b: sampled_softmax(a, b, b.flip(0), temperature=TAU))
    check(lambda a, b: comment_softmax(a, torch.stack([b, a.roll(1, 0)], 1), None, TAU))
