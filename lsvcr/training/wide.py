"""Wide Rec batches in the stage-one loop: which ones this process takes, and the cache they read."""

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


class WideBatches:
    """The wide batches of this process.

    Args:
        stream: of all processes.
        cache: the states of all texts.
        device: where batches go.
    """

    def __init__(self, stream: WideStream, cache: TextStates, device: torch.device) -> None:
        self._stream, self.cache, self._device = stream, cache, device

    def batch(self, number: int) -> WideBatch:
        """This process's part of the joined batch `number`."""
        return self._stream.batch(number, rank(), world_size()).to(self._device)


def wide_batches(
    settings: AlignSettings, dataset: Dataset, parts: AlignParts, device: torch.device
) -> WideBatches | None:
    """What `settings` ask for; None without wide batches.

    Raises:
        UserError: the untuned vectors are missing or of another LLM, or there are fewer titles than processes.
    """
    if not settings.wide_titles:
        return None
    data = RankData(
        dataset, Task.REC, Split.TRAIN, max_videos=settings.max_position, max_entries=settings.max_position
    )
    stream = WideStream(
        data,
        parts.collator.bank,
        titles=settings.wide_titles,
        per_title=settings.wide_samples,
        seed=settings.seed,
    )
    if min(len(stream), settings.wide_titles) < world_size():
        raise UserError(
            f"--wide_titles {settings.wide_titles}, {len(stream)} target videos in {dataset.root}, {world_size()} "
            "processes: every process needs a title of its own; give more titles, or 0 for no wide batches"
        )
    return WideBatches(stream, TextStates(*untuned_states(dataset, settings), device), device)
