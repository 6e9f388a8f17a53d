"""Every title and comment of a dataset to a vector, once, with the LLM of stage one or an untuned one.

This is the last use of the LLM: stage two and serving read the files written here. It runs as one process or
under `torchrun` with any number, writes the same files either way, and goes on where a killed run stopped.
"""

import datetime
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from lsvcr import schema
from lsvcr.data.item_texts import ItemTexts, item_fields
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.data.text_slices import TextSlices
from lsvcr.data.vectors import described, first_not_finite
from lsvcr.llm.encoder import Pooling, token_budget_batches
from lsvcr.settings import EmbedSettings
from lsvcr.settings.bounds import check_bounds
from lsvcr.training.embed_earlier import Earlier, differences, earlier_rows, open_earlier
from lsvcr.training.embed_merge import Merger
from lsvcr.training.embed_parts import Parts
from lsvcr.training.embed_plan import Plan, TextTable, kept, make_plan
from lsvcr.training.embed_write import Work, check_space, claim, publish, work_folder
from lsvcr.training.embedder import Embedder, checkpoint_folder, load_embedder
from lsvcr.utils.distributed import barrier, broadcast_object, is_main, rank, world_size
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import sha256_file
from lsvcr.utils.logging import get_logger, progress

CPU_BUDGET, GPU_BUDGET = 1024, 16_384
"""Tokens of a batch where the settings leave it open. On CPU 512 to 2048 are fastest and 4096 is a fifth
slower (SmolLM2, bf16); a GPU wants more rows than that to be busy."""
_PATIENCE = datetime.timedelta(hours=24)
"""How long processes wait for the slowest; when one fails, torchrun stops the others within seconds."""
_TOLD_TEXTS = 5
"""Texts that an error names."""

_log = get_logger(__name__)


@dataclass(frozen=True)
class Job:
    """One table of texts and the files made of it."""

    what: str
    """`titles`, `comments` or `items`."""
    owner: str
    """What a row's raw id is the id of: `video` or `comment`."""
    texts: TextTable
    keys_file: str
    short_file: str | None
    """Gets the text vectors (e); None without an embedding head."""
    full_file: str | None
    """Gets the LLM's pooled states (h); None if nobody asked."""

    def widths(self, embedder: Embedder) -> dict[str, int]:
        """Width by name of the files of vectors."""
        named = {self.short_file: embedder.width, self.full_file: embedder.full_width}
        return {name: width for name, width in named.items() if name is not None}


def embed(settings: EmbedSettings) -> Path:
    """Write the text vectors of a prepared dataset; call it on every process of a `torchrun`, or on one.

    What an interrupted run of the same settings has done is taken up, by any number of processes. Files that are
    finished and up to date stay as they are, unless `settings.overwrite` is set.

    Returns:
        The folder that holds the files.

    Raises:
        UserError: dataset, checkpoint, LLM or earlier export cannot be used, a vector is not finite, or the disk
            is full; the files of an earlier run are as they were then.
    """
    check_bounds(settings)
    if settings.earlier_dir and not settings.only_new:
        raise UserError(
            "--earlier_dir names the earlier export of --only_new: add --only_new, or leave it out"
        )
    dataset = open_dataset(settings.data_path)
    source = checkpoint_folder(settings.checkpoint)
    fields = _item_fields(settings, dataset, source)
    target = Path(settings.output_dir or source or settings.data_path)
    with _process_group(), work_folder(target) as work:
        embedder = load_embedder(settings, source)
        if fields:
            embedder = _of_items(embedder, settings, fields)
        jobs = [_item_job(dataset, fields)] if fields else _jobs(dataset, embedder, settings.full)
        anew = settings.overwrite and not work.moved
        if not broadcast_object(is_main() and _is_finished(target, jobs, embedder, dataset.data_hash, anew)):
            earlier = None
            if settings.only_new and is_main():
                files = {name: job.keys_file for job in jobs for name in job.widths(embedder)}
                earlier = open_earlier(Path(settings.earlier_dir or target), files, embedder.about)
            budget = settings.text_token_budget or (GPU_BUDGET if embedder.on_gpu else CPU_BUDGET)
            export(jobs, embedder, work, {"data_hash": dataset.data_hash, **embedder.about}, budget, earlier)
    return target


def export(
    jobs: list[Job],
    embedder: Embedder,
    work: Work,
    about: Mapping[str, Any],
    budget: int,
    earlier: Earlier | None = None,
) -> None:
    """Plan, read, join and publish; every process must call it.

    Args:
        jobs: the tables.
        embedder: makes the vectors.
        work: the work folder, inside the folder that gets the files.
        about: what the vectors depend on, for the description; work of anything else is thrown away.
        budget: tokens of a batch, padding included.
        earlier: on the first process, an export whose vectors are taken where id and text are the same.
    """
    started = time.monotonic()
    if is_main():
        run = {"files": [job.widths(embedder) for job in jobs], "earlier": earlier and earlier.stamp}
        claim(work, {**about, **run})
    barrier()
    tasks = [_Task(job, *_planned(job, embedder, work, earlier)) for job in jobs]
    finished = [task.parts.finished() for task in tasks]
    if is_main():
        _tell_plan(work, tasks, finished)
        check_space(
            work, sum(_missing(task, done, embedder) for task, done in zip(tasks, finished, strict=True))
        )
    barrier()
    for task, done in zip(tasks, finished, strict=True):
        _read(embedder, task, np.flatnonzero(~done)[rank() :: world_size()], budget)
    barrier()
    if is_main():
        _join(tasks, embedder, work, about, earlier)
        tokens = sum(int(task.plan.tokens[~done].sum()) for task, done in zip(tasks, finished, strict=True))
        seconds = time.monotonic() - started
        _log.info("%d tokens in %.0f s (%.0f a second)", tokens, seconds, tokens / max(seconds, 1e-9))


@dataclass(frozen=True)
class _Task:
    """A job, how it is done, and what is done of it."""

    job: Job
    plan: Plan
    parts: Parts


def _item_fields(settings: EmbedSettings, dataset: Dataset, source: Path | None) -> list[str]:
    """Columns of the item texts that are wanted; none where titles and comments are.

    Raises:
        UserError: flags that do not go together, or columns that are not there.
    """
    if settings.item_prompt == "none":
        if settings.pooling == "last" or settings.item_fields:
            flag = "--pooling last" if settings.pooling == "last" else "--item_fields"
            raise UserError(f"{flag} is for the vectors of items: add --item_prompt hllm, or leave it out")
        return []
    if source is not None or settings.full:
        flag = "--full" if source is None else f"--checkpoint {settings.checkpoint}"
        raise UserError(
            f"{flag} is for titles and comments, and HLLM's item vectors are the untuned LLM's: leave it out, or "
            "leave --item_prompt out"
        )
    return item_fields(dataset, settings.item_fields)


def _of_items(embedder: Embedder, settings: EmbedSettings, fields: list[str]) -> Embedder:
    """The embedder for item texts, described so that nobody takes its vectors for others."""
    pooling: Pooling = "mean" if settings.pooling == "mean" else "last"
    about = {"item_prompt": settings.item_prompt, "item_fields": fields, "pooling": pooling}
    return replace(embedder, pooling=pooling, about={**embedder.about, **about})


def _item_job(dataset: Dataset, fields: list[str]) -> Job:
    return Job(
        what="items",
        owner="video",
        texts=ItemTexts(dataset, fields),
        keys_file=schema.ITEM_KEYS_FILE,
        short_file=None,
        full_file=schema.ITEM_EMBEDDINGS_FILE,
    )


def _jobs(dataset: Dataset, embedder: Embedder, full: bool) -> list[Job]:
    tuned = embedder.head is not None
    whole = full or not tuned
    titles = TextSlices(dataset.root / schema.VIDEOS_FILE, schema.TITLE)
    comments = TextSlices(dataset.root / schema.COMMENTS_FILE, schema.CONTENT)
    return [
        Job(
            what="titles",
            owner="video",
            texts=titles,
            keys_file=schema.VIDEO_KEYS_FILE,
            short_file=schema.VIDEO_EMBEDDINGS_FILE if tuned else None,
            full_file=schema.VIDEO_FULL_EMBEDDINGS_FILE if whole else None,
        ),
        Job(
            what="comments",
            owner="comment",
            texts=comments,
            keys_file=schema.COMMENT_KEYS_FILE,
            short_file=schema.COMMENT_EMBEDDINGS_FILE if tuned else None,
            full_file=schema.COMMENT_FULL_EMBEDDINGS_FILE if whole else None,
        ),
    ]


def _is_finished(target: Path, jobs: list[Job], embedder: Embedder, data_hash: str, anew: bool) -> bool:
    """True if nothing is to be done; where earlier files are replaced, says why."""
    names = [name for job in jobs for name in job.widths(embedder)]
    there = [name for name in names if (target / name).is_file()]
    if not there:
        return False
    reason = "--overwrite" if anew else _out_of_date(target, names, embedder, data_hash)
    if reason:
        _log.info("%s: %s are made again: %s", target, ", ".join(there), reason)
        return False
    _log.info("%s: %s are finished and up to date (--overwrite makes them again)", target, ", ".join(names))
    return True


def _out_of_date(target: Path, names: list[str], embedder: Embedder, data_hash: str) -> str:
    """Why the files are not those that would be made now; empty if they are."""
    for name in names:
        try:
            entry = described(target / name)
        except UserError as broken:
            return str(broken)
        if entry is None or not (target / name).is_file():
            return f"{name} is missing or nothing says what it was made of"
        other = differences(entry, embedder.about)
        if other:
            return f"another checkpoint or other settings ({'; '.join(other)})"
        if entry["data_hash"] != data_hash:
            return "the dataset is another or has changed (--only_new reads only texts that are new)"
    # Last, because it reads all of them.
    damaged = [
        name for name in names if sha256_file(target / name) != (described(target / name) or {})["sha256"]
    ]
    return f"{', '.join(damaged)} changed since it was written" if damaged else ""


def _planned(job: Job, embedder: Embedder, work: Work, earlier: Earlier | None) -> tuple[Plan, Parts]:
    widths = job.widths(embedder)
    known: Callable[[np.ndarray], np.ndarray] | None = None
    if earlier is not None:
        known = partial(earlier_rows, earlier.keys[job.keys_file])
    plan = make_plan(work.folder, job.what, job.texts, embedder.lengths, 4 * sum(widths.values()), known)
    return plan, Parts(work.parts, plan, widths)


def _missing(task: _Task, done: np.ndarray, embedder: Embedder) -> int:
    """Bytes that are still to be written: the parts that are not finished, and the joined files."""
    texts = int(np.diff(task.plan.units)[~done].sum())
    return 4 * sum(task.job.widths(embedder).values()) * (texts + task.plan.n_rows)


def _tell_plan(work: Work, tasks: list[_Task], finished: list[np.ndarray]) -> None:
    for task, done in zip(tasks, finished, strict=True):
        plan, what = task.plan, task.job.what
        taken = int(np.count_nonzero(kept(np.asarray(plan.source)) >= 0))
        if taken:
            _log.info("%s: %d rows are taken from the earlier export", what, taken)
        if done.any():
            _log.info(
                "%s: %d of %d parts are done, %.0f %% of the tokens; going on with what %s holds",
                what,
                done.sum(),
                len(done),
                100 * plan.tokens[done].sum() / plan.tokens.sum(),
                work.folder,
            )


def _read(embedder: Embedder, task: _Task, units: np.ndarray, budget: int) -> None:
    """Make parts `units`, which are this process's."""
    plan, job = task.plan, task.job
    with progress(int(plan.tokens[units].sum()), f"embedding {job.what} (tokens)") as bar:
        for unit in units.tolist():
            rows = np.asarray(plan.first[plan.texts(unit)])
            ids = embedder.ids(job.texts.take(rows))
            made = {name: np.empty((len(rows), width), "<f4") for name, width in job.widths(embedder).items()}
            for batch in token_budget_batches(np.array(list(map(len, ids))), budget):
                mine = [ids[place] for place in batch]
                short, full = embedder.vectors(mine)
                for name, vectors in made.items():
                    vectors[batch] = (full if name == job.full_file else short).cpu().numpy()
                    _check(vectors[batch], job, rows[batch])
                bar.advance(sum(map(len, mine)))
            task.parts.write(unit, made)


def _check(vectors: np.ndarray, job: Job, rows: np.ndarray) -> None:
    if first_not_finite(vectors) is None:
        return
    bad = rows[~np.isfinite(vectors).all(axis=1)]
    named = bad[:_TOLD_TEXTS]
    ids, texts = job.texts.raw_ids(named), job.texts.take(named)
    told = ", ".join(f"{job.owner} {raw} ({text[:60]!r})" for raw, text in zip(ids, texts, strict=True))
    more = f" and {len(bad) - len(named)} more" if len(bad) > len(named) else ""
    raise UserError(
        f"the LLM gives NaN or infinity for {told}{more}: try --bf16 False or an earlier checkpoint"
    )


def _join(
    tasks: list[_Task], embedder: Embedder, work: Work, about: Mapping[str, Any], earlier: Earlier | None
) -> None:
    """Put the files together, check them and move them to where they are read."""
    vectors, keys = {}, {}
    target = work.folder.parent
    for task in tasks:
        job, merger = task.job, Merger(task.plan, task.parts)
        for name, width in job.widths(embedder).items():
            old = None if earlier is None else earlier.folder / name
            vectors[name] = merger.write(work.folder / name, width, old)
            _tell(target / name, task.plan, vectors[name])
        # The plan keeps the file mapped whatever its name.
        os.replace(work.folder / f"{job.what}-keys.npy", work.folder / job.keys_file)
        keys[job.keys_file] = {
            "data_hash": about["data_hash"],
            "rows": task.plan.n_rows,
            "sha256": sha256_file(work.folder / job.keys_file),
        }
    publish(work, target, about, vectors, keys)


def _tell(file: Path, plan: Plan, entry: Mapping[str, Any]) -> None:
    norms = entry["norms"]
    _log.info(
        "%s: %d rows of %d numbers, each written once and finite; norms %s; %d rows of zeros (%d texts are empty); "
        "%d texts read",
        file,
        entry["rows"],
        entry["width"],
        "{min:.4g} to {max:.4g}, median {median:.4g}".format(**norms) if norms else "of no text",
        entry["zero_rows"],
        entry["empty_texts"],
        len(plan.order),
    )


@contextmanager
def _process_group() -> Iterator[None]:
    """The processes `torchrun` started, as one group; nothing for a single process or in an existing group.

    Only flags are exchanged, so the group is gloo on every kind of device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()
