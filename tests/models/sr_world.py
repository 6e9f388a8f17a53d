"""Small random models and histories for the tests of the SR model."""

from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from lsvcr.models.sr import Histories, SRModel

WIDTH, N_VIDEOS = 8, 12
LENGTHS = [(5, 3), (1, 4), (0, 2), (3, 0), (0, 0), (4, 4)]
"""(videos, comments) of each user; every kind of empty history is among them."""


def make_model(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: object) -> SRModel:
    """An evaluated model whose every parameter is random, LayerNorms and biases too, except padding rows."""
    shape = {
        "text_width": 6,
        "hidden": WIDTH,
        "heads": 2,
        "inner": 16,
        "max_position": 9,
        "n_videos": N_VIDEOS,
    }
    model = SRModel(**{**shape, **changes}).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.5)
        for table in (model.video_id, model.comment_id):
            if table is not None:
                table.weight[0] = 0
    return model


def make_histories(
    lengths=LENGTHS, extra: int = 0, seed: int = 1, dtype: torch.dtype = torch.float64
) -> Histories:
    """Right-padded histories, `extra` more padded steps than needed; the padding is filled with rubbish.

    User u's real content depends on u alone, so that batches of other users or widths can be compared.
    """
    widths = [max((pair[side] for pair in lengths), default=0) + extra for side in (0, 1)]
    sides = []
    for side in (0, 1):
        width = widths[side]
        title = torch.full((len(lengths), width, WIDTH), 7.5, dtype=dtype)
        comment, ids = torch.full_like(title, -3.25), torch.full((len(lengths), width), 5)
        mask = torch.zeros(len(lengths), width, dtype=torch.bool)
        for user, pair in enumerate(lengths):
            rng, n = np.random.default_rng((seed, user, side)), pair[side]
            title[user, :n] = torch.from_numpy(rng.normal(size=(9, WIDTH))[:n]).to(dtype)
            comment[user, :n] = torch.from_numpy(rng.normal(size=(9, WIDTH))[:n]).to(dtype)
            ids[user, :n] = torch.from_numpy(rng.integers(1, N_VIDEOS + 1, size=9)[:n])
            mask[user, :n] = True
        sides.append((title, comment, ids, mask))
    return Histories(*sides[0], *sides[1])


def select(h: Histories, users: list[int]) -> Histories:
    """The batch of some of the users."""
    return Histories(**{field.name: getattr(h, field.name)[users] for field in fields(h)})


def entries(h: Histories, user: int) -> tuple[list, list]:
    """One user's real entries as the plain implementation takes them."""
    out = []
    for title, comment, ids, mask in (
        (h.video_title, h.video_comment, h.video_ids, h.video_mask),
        (h.comment_title, h.comment_comment, h.comment_video_ids, h.comment_mask),
    ):
        steps = range(int(mask[user].sum()))
        out.append([(title[user, i].numpy(), comment[user, i].numpy(), int(ids[user, i])) for i in steps])
    return out[0], out[1]


def make_watched(users: int = len(LENGTHS), dtype: torch.dtype = torch.float64) -> Tensor:
    """(B, d) vectors of watched videos."""
    return torch.from_numpy(np.random.default_rng(9).normal(size=(users, WIDTH))).to(dtype)


def all_vectors(model: SRModel, h: Histories, watched: Tensor, positions=None) -> Tensor:
    """(4, B, d): every user vector the model makes."""
    states = model.encode(h, positions)
    return torch.stack(
        [
            model.rec_user(states),
            model.rec_other(states),
            model.comm_rank_user(states, watched),
            model.comm_rank_other(states, watched),
        ]
    )
