"""Bundles for serve.py: the exporter's own encoder of a random model of the published shape, random tables."""

import json
from pathlib import Path

import numpy as np
import torch
from common import tell
from torch.utils.flop_counter import FlopCounterMode

from lsvcr.export.encoder import encoder_graph
from lsvcr.models.rank import RankModel
from lsvcr.models.sr import Histories, SRModel
from lsvcr.schema import Task
from lsvcr.serving.bundle_write import CommentTable, Csr, Part, RowKind, UserTable, VideoTable, write_bundle

HIDDEN, LENGTH, TEXT_WIDTH = 64, 50, 256
USERS = 1_000
FIRST_ID = 10_000_000_000
"""Raw ids begin here: wider than 32 bits, as those of platforms are."""


def bundle(videos: int, rows: RowKind, work: Path) -> Path:
    """A bundle of both tasks, past 100,000 videos of Rec alone; its comments: `count_of_comments`. Made once."""
    out = work / f"serve-{videos}-{rows}"
    if out.exists():
        return out
    tell(f"making a bundle of {videos:,} videos with {rows} rows ...")
    comments, tasks = count_of_comments(videos), list(Task) if videos <= 100_000 else [Task.REC]
    rng = np.random.default_rng(0)
    titles = (f"video {i} about something that takes a title of this length" for i in range(1, videos + 1))
    texts = (f"comment {i} that says what somebody thought of it" for i in range(1, comments + 1))
    write_bundle(
        out,
        videos=VideoTable(FIRST_ID + np.arange(1, videos + 1), titles, _comments_of(videos, comments)),
        comments=CommentTable(2 * FIRST_ID + np.arange(1, comments + 1), texts, np.zeros(comments)),
        users=_users(videos, comments, rng),
        parts={task: _part(task, videos, comments, rng) for task in tasks},
        text_width=TEXT_WIDTH,
        max_videos=LENGTH,
        max_entries=LENGTH,
        rows=rows,
    )
    return out


def count_of_comments(videos: int) -> int:
    """Of a bundle: as many as videos, from 50,000 to 100,000."""
    return min(max(videos, 50_000), 100_000)


def bodies(videos: int, count: int, work: Path) -> Path:
    """JSON bodies of as many requests with full histories, one a line; made once."""
    out = work / f"serve-{videos}-bodies-{count}.jsonl"
    if not out.exists():
        rng = np.random.default_rng(1)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(query(videos, rng)) + "\n" for _ in range(count)))
    return out


def query(videos: int, rng: np.random.Generator) -> dict[str, object]:
    """A request: LENGTH liked videos and LENGTH visits with a comment each."""
    shown = min(videos, count_of_comments(videos))  # comment c of these belongs to video c
    liked, visited = (rng.choice(n, min(LENGTH, n), replace=False) + 1 for n in (videos, shown))
    return {
        "video_history": (FIRST_ID + liked).tolist(),
        "comment_history": [
            {"video": FIRST_ID + v, "comments": [2 * FIRST_ID + v]} for v in visited.tolist()
        ],
    }


@torch.no_grad()
def encoder_gflop() -> float:
    """Operations of one run of Rec's encoder on full histories, in 10^9; attention counts as if nothing were masked."""
    sr = _model(Task.REC).sr
    steps, rows = torch.zeros(1, LENGTH, HIDDEN), torch.zeros(1, LENGTH, dtype=torch.int64)
    one = (steps, steps, rows, torch.ones(1, LENGTH, dtype=torch.bool))
    with FlopCounterMode(display=False) as counter:
        sr.rec_vectors(Histories(*one, *one))
    # Titles and comments are merged once, at the export.
    with FlopCounterMode(display=False) as merging:
        sr.merge(torch.zeros(1, 2 * LENGTH, 2 * HIDDEN))
    return (counter.get_total_flops() - merging.get_total_flops()) / 1e9


def _model(task: Task) -> RankModel:
    """Random weights of the published shape; its catalogue is one video, for the encoder has no table in it."""
    torch.manual_seed(0)
    sr = SRModel(text_width=TEXT_WIDTH, hidden=HIDDEN, max_position=LENGTH, n_videos=1)
    text = torch.zeros(2, TEXT_WIDTH)
    return RankModel(sr, task, text, text, n_videos=1, n_comments=1).eval()


def _part(task: Task, videos: int, comments: int, rng: np.random.Generator) -> Part:
    ranked = videos if task is Task.REC else comments
    return Part(
        encoder=encoder_graph(_model(task), LENGTH, LENGTH),
        items=_unit(_rows(ranked, rng)),
        entries=_rows(videos, rng),
        shown=_rows(comments, rng),
        watched=_rows(videos, rng) if task is Task.COMM_RANK else None,
    )


def _rows(count: int, rng: np.random.Generator) -> np.ndarray:
    rows = rng.standard_normal((count + 1, HIDDEN), dtype=np.float32)
    rows[0] = 0
    return rows


def _unit(rows: np.ndarray) -> np.ndarray:
    rows[1:] /= np.linalg.norm(rows[1:], axis=1, keepdims=True)
    return rows


def _comments_of(videos: int, comments: int) -> Csr:
    """Comment c belongs to video (c - 1) % videos + 1."""
    own = np.arange(comments) % videos
    counts = np.bincount(own, minlength=videos)
    items = np.argsort(own, kind="stable").astype(np.int32) + 1
    return Csr(np.concatenate([[0, 0], np.cumsum(counts)]), items)


def _users(videos: int, comments: int, rng: np.random.Generator) -> UserTable:
    offsets = np.concatenate([[0], np.arange(USERS + 1) * LENGTH])
    liked = rng.integers(1, videos + 1, (USERS, LENGTH), dtype=np.int32)
    said = rng.integers(1, min(videos, comments) + 1, USERS * LENGTH, dtype=np.int32)
    return UserTable(
        ids=3 * FIRST_ID + np.arange(1, USERS + 1),
        videos=Csr(offsets, liked.reshape(-1)),
        comments=Csr(offsets, said),
        comment_videos=said,  # comment c of those that are drawn belongs to video c
        seen=Csr(offsets, np.sort(liked, axis=1).reshape(-1)),
    )
