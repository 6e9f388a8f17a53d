"""Randomness as an argument: generators that are functions of their keys.

A key tuple such as `(seed, epoch, sample)` names one stream of random numbers. Nothing is carried from
one draw to the next, so an interrupted run continues with the numbers it would have drawn, on any number
of processes and data workers.
"""

import random

import numpy as np
import torch

_MAX_SEED = 2**63 - 1


def generator(*keys: int) -> np.random.Generator:
    """The NumPy generator of the stream that `keys` (non-negative integers) name."""
    return np.random.default_rng(tuple(int(key) for key in keys))


def derived_seed(*keys: int) -> int:
    """One seed in [0, 2^63) that is a well-mixed function of all `keys`."""
    state = np.random.SeedSequence(tuple(int(key) for key in keys)).generate_state(1, np.uint64)
    return int(state[0]) & _MAX_SEED


def seed_everything(*keys: int) -> None:
    """Seed the global generators of Python, NumPy and torch (all devices).

    Only dropout and parameter initialisation read the global torch generator; everything of our own takes a
    generator argument. No backend is made slower or disabled for it.
    """
    seed = derived_seed(*keys)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
