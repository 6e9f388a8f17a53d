"""Joined micro-batches: shares of the processes, order, negatives, and weights."""

import numpy as np
import pytest
import torch

from lsvcr.data.rank_joined import JoinedBatch, JoinedStream
from lsvcr.data.rank_sequences import SequenceData
from lsvcr.data.store import Dataset


def stream(dataset: Dataset, place: tuple[int, int] = (0, 1), **changes: int) -> JoinedStream:
    own = {"seed": 5, "batch": 4, "accumulation": 2, "negatives": 0, "micro_steps": 12, **changes}
    return JoinedStream(SequenceData(dataset, 4, share="batch"), place=place, **own)


def same(left: JoinedBatch, right: JoinedBatch) -> bool:
    names = ("video_ids", "targets", "items", "keys", "negatives")
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in names)


@pytest.mark.parametrize("negatives", [0, 6])
def test_processes_share_out_the_users_and_know_all_videos(tiny_dataset: Dataset, negatives: int) -> None:
    for number in (0, 3, 7):
        whole = stream(tiny_dataset, batch=4, negatives=negatives)[number]
        halves = [stream(tiny_dataset, (rank, 2), batch=2, negatives=negatives)[number] for rank in (0, 1)]
        assert torch.equal(torch.cat([half.targets for half in halves]), whole.targets)
        assert torch.equal(torch.cat([half.video_ids for half in halves]), whole.video_ids)
        for half in halves:
            assert torch.equal(half.items, whole.items) and torch.equal(half.keys, whole.keys)
            assert torch.equal(half.negatives, whole.negatives) and len(half.negatives) == negatives
        seen = {*whole.video_ids.flatten().tolist(), *whole.targets.flatten().tolist()} - {0}
        assert whole.items.tolist() == sorted(seen | set(whole.negatives.tolist()))
        assert whole.keys.tolist() == sorted(set(whole.targets.flatten().tolist()) - {0})


def test_every_user_comes_once_an_epoch_in_another_order(tiny_dataset: Dataset) -> None:
    made = stream(tiny_dataset, batch=6, accumulation=1, micro_steps=8)
    users = len(SequenceData(tiny_dataset, 4))
    assert users == 24
    firsts = [tuple(row) for number in range(8) for row in made[number].targets.tolist()]
    assert sorted(firsts[:24]) == sorted(firsts[24:]) and firsts[:24] != firsts[24:]


def test_a_step_reaches_into_the_next_epoch(tiny_dataset: Dataset) -> None:
    made = stream(tiny_dataset, batch=10, accumulation=1, micro_steps=5)
    rows = [tuple(row) for number in range(5) for row in made[number].targets.tolist()]
    assert sorted(rows[:24]) == sorted(rows[24:48]) and len(rows) == 50


def test_a_micro_step_is_a_function_of_its_number(tiny_dataset: Dataset) -> None:
    made = stream(tiny_dataset, negatives=5)
    all_of_them = [made[number] for number in range(12)]
    late = list(stream(tiny_dataset, negatives=5).loader(9, 0))
    assert [batch.number for batch in late] == [9, 10, 11]
    assert all(same(one, all_of_them[one.number]) for one in late)
    assert not same(all_of_them[0], all_of_them[6])
    other = stream(tiny_dataset, seed=6)[0]
    assert not torch.equal(other.targets, all_of_them[0].targets)


def test_weights_make_the_mean_over_all_targets_of_a_step(tiny_dataset: Dataset) -> None:
    """The mean over micro-steps and processes of weight x (mean of 1 over own targets) is 1, and so for any values."""
    rng = np.random.default_rng(0)
    total, count, products = 0.0, 0, []
    for rank in (0, 1, 2):
        made = stream(tiny_dataset, (rank, 3), batch=2, accumulation=2)
        for number in (4, 5):
            batch = made[number]
            values = rng.normal(size=int((batch.targets > 0).sum()))
            products.append(batch.weight * values.mean())
            total, count = total + values.sum(), count + len(values)
    assert np.mean(products) == pytest.approx(total / count)


def test_nothing_that_is_held_out_is_in_a_batch(tiny_dataset: Dataset) -> None:
    from lsvcr.schema import Split, Task

    held = {
        (int(user), int(video))
        for split in (Split.VAL, Split.TEST)
        for user, video in zip(
            tiny_dataset.samples(Task.REC, split).user,
            tiny_dataset.samples(Task.REC, split).video,
            strict=True,
        )
    }
    data = SequenceData(tiny_dataset, 50, share="batch")
    made = JoinedStream(data, seed=1, batch=24, accumulation=1, negatives=0, place=(0, 1), micro_steps=1)
    users = data.users[made._rows(0, 1)]
    batch = made[0]
    for user, read, targets in zip(users.tolist(), batch.video_ids, batch.targets, strict=True):
        shown = {*read.tolist(), *targets.tolist()}
        assert not {video for owner, video in held if owner == user} & shown
