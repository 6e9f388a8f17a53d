"""Stage-two checkpoints with random weights on small datasets, made without training."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from lsvcr.baselines.registry import find
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.models import checkpoint
from lsvcr.schema import BEST_DIR, COMMENTS_FILE, USERS_FILE, VIDEOS_FILE, Task
from lsvcr.settings import ExportSettings
from lsvcr.training import baseline_setup
from lsvcr.training.rank_setup import set_up
from tests.training.rank_runs import SMALL, planted_world, write_texts

WIDE = 24
"""Width of text vectors that need a head; `SMALL.text_width` (8) needs none."""


@dataclass
class Place:
    """A dataset with text vectors, and where runs go.

    Attributes:
        data: folder of the dataset.
        root: folder that everything lies in.
    """

    data: Path
    root: Path

    @property
    def dataset(self) -> Dataset:
        """The dataset, opened."""
        return open_dataset(self.data)

    def run(self, task: Task, name: str = "", seed: int = 0, **changes: Any) -> Path:
        """A finished run folder whose every weight is random, norms, biases and the gate too."""
        folder = self.root / (name or f"{task.value}-{len(list(self.root.iterdir()))}")
        texts = {
            "photo_emb_file": str(self.root / "texts" / "photo_embs.npy"),
            "comment_emb_file": str(self.root / "texts" / "comment_embs.npy"),
        }
        settings = replace(
            SMALL,
            finetune_task=task.label,
            data_path=str(self.data),
            output_dir=str(folder),
            **(texts | changes),
        )
        setup = set_up(settings)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in setup.model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
            for table in (setup.model.sr.video_id, setup.model.sr.comment_id):
                if table is not None:
                    table.weight[0] = 0
        progress = {"epoch": 1, "best_epoch": 1}
        manifest = {**setup.about(1), "progress": progress}
        checkpoint.save(folder / BEST_DIR, setup.model.state_dict(), manifest)
        return folder

    def baseline(self, name: str, folder: str = "", **changes: Any) -> Path:
        """A finished run folder of `lsvcr train`, its weights random, if it has any, and of size 1."""
        path = self.root / (folder or f"{name}-{len(list(self.root.iterdir()))}")
        given = find(name).settings(data_path=str(self.data), output_dir=str(path), **changes)
        setup = baseline_setup.set_up(name, given)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in setup.model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        manifest = {**setup.about(1), "progress": {"epoch": 1, "best_epoch": 1}}
        checkpoint.save(path / BEST_DIR, setup.model.state_dict(), manifest)
        return path

    def wide_texts(self) -> dict[str, str]:
        """Settings that name text vectors of width `WIDE`."""
        folder = self.root / "wide"
        if not folder.is_dir():
            write_vectors(folder, self.dataset, WIDE)
        return {
            "photo_emb_file": str(folder / "photo_full_embs.npy"),
            "comment_emb_file": str(folder / "comment_full_embs.npy"),
        }

    def settings(self, *runs: Path, **changes: Any) -> ExportSettings:
        """Settings of an export of these runs to `bundle`."""
        names = [str(run) for run in runs] + [""]
        given = {"checkpoint": names[0], "other": names[1], "data": str(self.data)}
        return ExportSettings(**{**given, "out": str(self.root / "bundle"), **changes})


def write_vectors(folder: Path, dataset: Dataset, width: int) -> None:
    """Random text vectors of every title and comment, a constant part in all; none where there is no text."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(width)
    names = (
        ("photo_embs.npy", "comment_embs.npy")
        if width == SMALL.text_width
        else (
            "photo_full_embs.npy",
            "comment_full_embs.npy",
        )
    )
    for name, texts in zip(names, (dataset.titles(), dataset.contents()), strict=True):
        words = list(texts)
        own = {word: rng.normal(size=width) + 2 for word in dict.fromkeys(words)} | {"": np.zeros(width)}
        np.save(folder / name, np.stack([own[word] for word in words]).astype(np.float32))


def tiny_place(data: Path, root: Path) -> Place:
    """The tiny world: whole-number ids, visits of several comments, videos without comments or title."""
    place = Place(data, root)
    write_vectors(root / "texts", place.dataset, SMALL.text_width)
    return place


def named_place(root: Path) -> Place:
    """The planted world with ids that are texts, in any script."""
    world = planted_world()
    data = root / "data"
    world.write(data)
    comments = range(1, len(world.video_of) + 1)
    pl.DataFrame({"raw_id": [f"user {u:03}" for u in range(len(world.videos))]}).write_parquet(
        data / USERS_FILE
    )
    videos = [f"视频-{v}" for v in range(1, world.n_videos + 1)]
    pl.DataFrame({"raw_id": videos, "title": [f"{v} 的标题 title" for v in videos]}).write_parquet(
        data / VIDEOS_FILE
    )
    pl.DataFrame(
        {
            "raw_id": [f"c/{c}" for c in comments],
            "content": [f"评论 {c}" for c in comments],
            "video": list(world.video_of),
            "likes": pl.Series([None if c % 2 else c for c in comments], dtype=pl.Int64),
        }
    ).write_parquet(data / COMMENTS_FILE)
    write_texts(root / "texts", SMALL.text_width, ("photo_embs.npy", "comment_embs.npy"))
    return Place(data, root)
