"""Which of `count` things the batch number n of an endless stream takes: one random order behind another."""

import numpy as np

from lsvcr.utils.seeding import generator


class Rounds:
    """Batches of equal size, every thing at most once a round, a function of (keys, number).

    Args:
        count: things there are; they are numbered from 0.
        size: things of a batch; more than `count` means all of them. What is left of an order when it makes no whole
            batch any more is passed over.
        keys: of the random orders, such as (seed, purpose).
    """

    def __init__(self, count: int, size: int, *keys: int) -> None:
        self._count, self._size, self._keys = count, min(count, size), keys
        self._round, self._order = -1, np.zeros(0, dtype=np.int64)

    def batch(self, number: int) -> np.ndarray:
        """(size,) int64, the things of batch `number` in random order."""
        round_, turn = divmod(number, self._count // self._size)
        if round_ != self._round:
            self._round = round_
            self._order = generator(*self._keys, round_).permutation(self._count)
        return self._order[turn * self._size : (turn + 1) * self._size]
