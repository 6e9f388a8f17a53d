"""Every title and comment of a dataset to a vector, once, with the LLM of stage one or an untuned one.

This is the last use of the LLM: stage two and serving read the files written here. It runs as one process or
under `torchrun` with any number, and writes the same files either way.
"""

import datetime
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist

from lsvcr.data.store import Dataset, open_dataset
from lsvcr.data.vectors import first_not_finite
from lsvcr.schema import (
    COMMENT_EMBEDDINGS_FILE,
    COMMENT_FULL_EMBEDDINGS_FILE,
    VIDEO_EMBEDDINGS_FILE,
    VIDEO_FULL_EMBEDDINGS_FILE,
)
from lsvcr.settings import EmbedSettings
from lsvcr.training.embed_plan import Plan, TextTable, make_plan
from lsvcr.training.embed_write import create_npy, merge, part_path, publish, work_folder
from lsvcr.training.embedder import Embedder, checkpoint_folder, load_embedder
from lsvcr.utils.distributed import barrier, is_main, rank, world_size
from lsvcr.utils.errors import UserError
from lsvcr.utils.logging import get_logger, progress

_GROUP_TEXTS = 4096
"""Texts that are read and tokenised at a time."""
CPU_BUDGET, GPU_BUDGET = 1024, 16_384
"""Tokens of a batch where the settings leave it open. On CPU 512 to 2048 are fastest and 4096 is a fifth
slower (SmolLM2, bf16); a GPU wants more rows than that to be busy."""
_PATIENCE = datetime.timedelta(hours=24)
"""How long processes wait for the slowest; when one fails, torchrun stops the others within seconds."""

_log = get_logger(__name__)


@dataclass(frozen=True)
class Job:
    """One table of texts and the files made of it."""

    what: str
    texts: TextTable
    short_file: str | None
    """Gets the text vectors (e); None without an embedding head."""
    full_file: str | None
    """Gets the LLM's pooled states (h); None if nobody asked."""

    def files(self, embedder: Embedder) -> dict[str, int]:
        """Width by file name."""
        named = {self.short_file: embedder.width, self.full_file: embedder.full_width}
        return {name: width for name, width in named.items() if name is not None}


def embed(settings: EmbedSettings) -> Path:
    """Write the text vectors of a prepared dataset; call it on every process of a `torchrun`, or on one.

    Returns:
        The folder that holds the files.

    Raises:
        UserError: dataset, checkpoint or LLM cannot be used, a vector is not finite, or the disk is full; the
            files of an earlier run are as they were then.
    """
    started = time.monotonic()
    dataset = open_dataset(settings.data_path)
    source = checkpoint_folder(settings.checkpoint)
    target = Path(settings.output_dir or source or settings.data_path)
    with _process_group():
        embedder = load_embedder(settings, source)
        budget = settings.text_token_budget or (GPU_BUDGET if embedder.on_gpu else CPU_BUDGET)
        with work_folder(target) as work:
            made: dict[str, tuple[Plan, int]] = {}
            for job in _jobs(dataset, embedder, settings.full):
                plan = make_plan(job.texts, embedder.lengths, budget)
                _write_parts(embedder, job, plan, work)
                made |= {name: (plan, width) for name, width in job.files(embedder).items()}
            barrier()
            if is_main():
                for name, (plan, width) in made.items():
                    merge(work, name, plan, width, world_size())
                publish(work, target, {"data_hash": dataset.data_hash, **embedder.about}, made)
                _tell(target, made, time.monotonic() - started)
    return target


def _jobs(dataset: Dataset, embedder: Embedder, full: bool) -> list[Job]:
    tables = [
        ("titles", dataset.titles(), VIDEO_EMBEDDINGS_FILE, VIDEO_FULL_EMBEDDINGS_FILE),
        ("comments", dataset.contents(), COMMENT_EMBEDDINGS_FILE, COMMENT_FULL_EMBEDDINGS_FILE),
    ]
    tuned = embedder.head is not None
    return [
        Job(what, texts, short if tuned else None, whole if full or not tuned else None)
        for what, texts, short, whole in tables
    ]


def _write_parts(embedder: Embedder, job: Job, plan: Plan, work: Path) -> None:
    """Encode this process's batches and write its part of each file."""
    batches = plan.share(rank(), world_size())
    if not batches:
        return
    rows = sum(map(len, batches))
    parts = {
        name: create_npy(part_path(work, name, rank()), rows, width)
        for name, width in job.files(embedder).items()
    }
    at = 0
    with progress(plan.tokens(batches), f"embedding {job.what} (tokens)") as bar:
        for group in _groups(batches):
            ids = embedder.ids(job.texts.take(plan.first[np.concatenate(group)]))
            for batch in group:
                mine, ids = ids[: len(batch)], ids[len(batch) :]
                short, full = embedder.vectors(mine)
                for name, part in parts.items():
                    vectors = (full if name == job.full_file else short).cpu().numpy()
                    _check(vectors, job, plan.first[batch])
                    part[at : at + len(batch)] = vectors
                at += len(batch)
                bar.advance(sum(map(len, mine)))
    for part in parts.values():
        part.flush()


def _groups(batches: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Runs of batches that hold about `_GROUP_TEXTS` texts together."""
    group: list[np.ndarray] = []
    held = 0
    for batch in batches:
        group.append(batch)
        held += len(batch)
        if held >= _GROUP_TEXTS:
            yield group
            group, held = [], 0
    if group:
        yield group


def _check(vectors: np.ndarray, job: Job, rows: np.ndarray) -> None:
    bad = first_not_finite(vectors)
    if bad is not None:
        row = int(rows[bad])
        raise UserError(
            f"the LLM gives NaN or infinity for number {row} of the {job.what} ({job.texts.take([row])[0][:60]!r}): "
            "try --bf16 False or an earlier checkpoint"
        )


@contextmanager
def _process_group() -> Iterator[None]:
    """The processes `torchrun` started, as one group; nothing for a single process or in an existing group.

    Only counts and row numbers are exchanged, so the group is gloo on every kind of device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _tell(target: Path, made: dict[str, tuple[Plan, int]], seconds: float) -> None:
    for name, (plan, width) in made.items():
        repeats = 1 - len(plan.first) / max(1, len(plan.rows))
        _log.info(
            "%s: %d rows of %d numbers; %.0f %% of the texts are repeats, encoded once",
            target / name,
            plan.n_rows,
            width,
            100 * repeats,
        )
    tokens = sum(plan.tokens(plan.batches) for plan in {id(plan): plan for plan, _ in made.values()}.values())
    _log.info("%d tokens in %.0f s (%.0f a second)", tokens, seconds, tokens / max(seconds, 1e-9))
