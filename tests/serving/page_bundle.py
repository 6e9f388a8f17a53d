"""A random bundle whose ids a person can type, and whose texts would harm a careless page."""

from pathlib import Path
from typing import Any

import numpy as np

from lsvcr.schema import Task
from lsvcr.serving.bundle import write_bundle
from lsvcr.serving.bundle_write import CommentTable, VideoTable
from lsvcr.serving.text_encoder import FOLDER, MEAN_FILE, RARITY_FILE, WEIGHTS_FILE
from tests.serving.bundles import BOTH, World

VIDEOS, COMMENTS, USERS = 40, 500, 20
WIDTH, BUCKETS = 24, 64
NASTY = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
"""The title of video 1 and the text of comment 1."""


def write_page_bundle(path: Path, first: int = 0, users: bool = True, tasks: tuple[Task, ...] = BOTH) -> Path:
    """Videos, comments and users are `first` + 1, 2, 3, ...; with a random text encoder."""
    world = World(VIDEOS, COMMENTS, USERS, 16, WIDTH, seed=3)
    titles = [NASTY, *(f"video {v} " + "with a long title " * (v % 4) for v in range(2, VIDEOS + 1))]
    texts = [NASTY, *(f"comment {c}" for c in range(2, COMMENTS + 1))]
    ids = [[first + row for row in range(1, n + 1)] for n in (VIDEOS, COMMENTS, USERS)]
    return write_bundle(
        path,
        videos=VideoTable(ids[0], titles, world.lists),
        comments=CommentTable(ids[1], texts, world.likes[1:]),
        parts={task: world.part(task) for task in tasks},
        users=world.user_table(ids[2]) if users else None,
        text_width=WIDTH,
        max_videos=50,
        max_entries=50,
        about={"text_encoder": {"buckets": BUCKETS}},
        files={f"{FOLDER}/{name}": array for name, array in _text_encoder().items()},
    )


def _text_encoder() -> dict[str, Any]:
    rng = np.random.default_rng(4)
    return {
        WEIGHTS_FILE: rng.standard_normal((BUCKETS, WIDTH)).astype(np.float16),
        RARITY_FILE: np.ones(BUCKETS, dtype=np.float32),
        MEAN_FILE: np.zeros(WIDTH, dtype=np.float32),
    }
