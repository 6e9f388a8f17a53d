"""A small world with a planted preference and short stage-two runs in it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lsvcr.models import checkpoint
from lsvcr.models.sr import EmbeddingHead, SRModel
from lsvcr.schema import BEST_DIR, Split, Task
from lsvcr.settings import RankSettings
from tests.rank_world import World

TOPICS, USERS, VIDEOS, COMMENTS = 4, 40, 24, 3
LLM_WIDTH = 32
NARROW = ("photo_embs.npy", "comment_embs.npy")

SMALL = RankSettings(
    hidden=16,
    layers=1,
    heads=2,
    inner=32,
    dropout=0.0,
    attention_dropout=0.0,
    text_width=8,
    learning_rate=5e-3,
    num_train_epochs=3,
    per_device_train_batch_size=16,
    max_position=8,
    max_phis_len=8,
    max_chis_len=8,
    neg_comment_num=4,
    report_to="none",
)


def planted_world(data_hash: str = "planted") -> World:
    """User u likes videos of topic u mod TOPICS alone, and of each video the comment in tone u mod COMMENTS.

    Video v has topic v mod TOPICS; comment c belongs to video (c - 1) // COMMENTS + 1 and has tone c mod COMMENTS.
    """
    videos, comments = [], []
    for user in range(1, USERS + 1):
        rng = np.random.default_rng((3, user))
        own = [v for v in range(1, VIDEOS + 1) if v % TOPICS == user % TOPICS]
        liked = [int(v) for v in rng.permutation(own)]
        videos.append(liked)
        comments.append([(_comment(v, user), step) for step, v in enumerate(liked)])
    cuts = {Split.TRAIN: (2, 3), Split.VAL: (4,), Split.TEST: (5,)}
    rec = {
        s: [(u + 1, cut, cut, videos[u][cut]) for u in range(USERS) for cut in at] for s, at in cuts.items()
    }
    positives = {s: [[comments[u][cut][0]] for u in range(USERS) for cut in at] for s, at in cuts.items()}
    stored = {}
    for split in (Split.VAL, Split.TEST):
        stored[Task.REC, split] = [
            [t, *(v for v in range(1, VIDEOS + 1) if v != t)][:10] for *_, t in rec[split]
        ]
        stored[Task.COMM_RANK, split] = [_comments_of(video) for *_, video in rec[split]]
    return World(
        VIDEOS,
        videos,
        comments,
        video_of=[(c - 1) // COMMENTS + 1 for c in range(1, VIDEOS * COMMENTS + 1)],
        rec=rec,
        comm_rank=rec,
        positives=positives,
        candidates=stored,
        data_hash=data_hash,
        options={"candidates": 100},
    )


def _comments_of(video: int) -> list[int]:
    return list(range((video - 1) * COMMENTS + 1, video * COMMENTS + 1))


def _comment(video: int, user: int) -> int:
    return next(c for c in _comments_of(video) if c % COMMENTS == user % COMMENTS)


def write_texts(folder: Path, width: int = LLM_WIDTH, names: tuple[str, str] | None = None) -> None:
    """Vectors that tell topic (videos) or tone (comments), with noise."""
    rng = np.random.default_rng(0)
    video_name, comment_name = names or ("photo_full_embs.npy", "comment_full_embs.npy")
    for name, count, kinds, offset in (
        (video_name, VIDEOS, TOPICS, 0),
        (comment_name, VIDEOS * COMMENTS, COMMENTS, 4),
    ):
        table = rng.normal(0, 0.05, (count + 1, width)).astype(np.float32)
        table[np.arange(count + 1), offset + np.arange(count + 1) % kinds] += 1
        table[0] = 0
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, table)


def write_planted(folder: Path) -> Path:
    """The planted world on disk with wide vectors, which need a head, and narrow ones, which need none."""
    planted_world().write(folder)
    write_texts(folder)
    write_texts(folder, 8, NARROW)
    return folder


def settings(data: Path, out: Path, **changes: object) -> RankSettings:
    """SMALL with paths and changes."""
    return replace(SMALL, data_path=str(data), output_dir=str(out), **changes)


def write_stage_one(folder: Path, **changes: object) -> dict[str, torch.Tensor]:
    """A stage-one run folder whose best/ holds random weights; returns all its tensors."""
    shape = {"text_width": 8, "hidden": 16, "layers": 1, "heads": 2, "inner": 32, "max_position": 6}
    sr = SRModel(**{**shape, **changes})
    parts: dict[str, nn.Module] = {
        "sr.": sr,
        "head.": EmbeddingHead(LLM_WIDTH, 8),
        "contrast.": nn.Linear(LLM_WIDTH, 16),
    }
    tensors = {}
    generator = torch.Generator().manual_seed(1)
    for prefix, module in parts.items():
        for name, value in module.state_dict().items():
            tensors[prefix + name] = torch.randn(value.shape, generator=generator) * 0.1
    checkpoint.save(folder / BEST_DIR, tensors, {"kind": "stage-one", "settings": {}})
    write_texts(folder, 8, NARROW)
    return tensors
