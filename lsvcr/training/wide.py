"""Wide batches in the stage-one loop: which ones this process takes, and the cache they read."""

from collections.abc import Sequence

import torch

from lsvcr.data.rank import RankData
from lsvcr.data.rank_wide import WideBatch, WideStream
from lsvcr.data.store import Dataset
from lsvcr.llm.wide import TextStates
from lsvcr.schema import Split, Task
from lsvcr.settings import AlignSettings
from lsvcr.training.align_build import AlignParts
from lsvcr.training.untuned import untuned_states
from lsvcr.utils.distributed import rank, world_size
from lsvcr.utils.errors import UserError

_FLAGS = {Task.REC: "wide_titles", Task.COMM_RANK: "wide_videos"}


class WideBatches:
    """The wide batches of this process.

    Args:
        streams: of all processes, one a task.
        cache: the states of all texts.
        device: where batches go.
    """

    def __init__(self, streams: Sequence[WideStream], cache: TextStates, device: torch.device) -> None:
        self._streams, self.cache, self._device = streams, cache, device

    @property
    def tasks(self) -> list[Task]:
        """Which tasks have wide batches."""
        return [stream.task for stream in self._streams]

    def batches(self, number: int) -> list[WideBatch]:
        """This process's part of each joined batch `number`."""
        return [stream.batch(number, rank(), world_size()).to(self._device) for stream in self._streams]


def wide_batches(
    settings: AlignSettings, dataset: Dataset, parts: AlignParts, device: torch.device
) -> WideBatches | None:
    """What `settings` ask for; None without wide batches.

    Raises:
        UserError: the untuned vectors are missing or of another LLM, or a process would have no part.
    """
    streams = [
        _stream(settings, dataset, parts, task) for task, flag in _FLAGS.items() if getattr(settings, flag)
    ]
    return (
        WideBatches(streams, TextStates(*untuned_states(dataset, settings), device), device)
        if streams
        else None
    )


def _stream(settings: AlignSettings, dataset: Dataset, parts: AlignParts, task: Task) -> WideStream:
    longest = settings.max_position
    wanted: int = getattr(settings, _FLAGS[task])
    stream = WideStream(
        RankData(dataset, task, Split.TRAIN, max_videos=longest, max_entries=longest),
        parts.collator.bank,
        groups=wanted,
        per_group=settings.wide_samples,
        seed=settings.seed,
    )
    if min(len(stream), wanted) < world_size():
        raise UserError(
            f"--{_FLAGS[task]} {wanted}, {len(stream)} videos to learn from in {dataset.root}, {world_size()} "
            "processes: every process needs one of its own; give more, or 0 for no wide batches of this task"
        )
    return stream
