"""Batches of an endless stream of random orders."""

import numpy as np
import pytest

from lsvcr.data.rounds import Rounds


@pytest.mark.parametrize(("count", "size"), [(12, 4), (13, 4), (5, 5), (7, 1)])
def test_a_round_takes_nothing_twice(count: int, size: int) -> None:
    rounds = Rounds(count, size, 3)
    turns = count // size
    for round_ in range(3):
        taken = np.concatenate([rounds.batch(round_ * turns + turn) for turn in range(turns)])
        assert len(np.unique(taken)) == len(taken) == turns * size
        assert taken.max() < count


def test_more_than_there_are_means_all_of_them() -> None:
    assert sorted(Rounds(3, 1000, 0).batch(7)) == [0, 1, 2]


def test_a_batch_depends_on_keys_and_number_alone() -> None:
    straight = [Rounds(50, 10, 1, 2).batch(number).tolist() for number in range(12)]
    jumping = Rounds(50, 10, 1, 2)
    for number in (11, 0, 7, 3):
        assert jumping.batch(number).tolist() == straight[number]
    assert Rounds(50, 10, 1, 3).batch(0).tolist() != straight[0]
    assert straight[0] != straight[5]  # another round, another order
