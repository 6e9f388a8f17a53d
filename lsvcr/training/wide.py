"""Wide batches in the stage-one loop: which ones this process takes, and the cache they read."""

from collections.abc import Mapping

import torch

from lsvcr.data.align_taste import TasteBatch, TasteStream
from lsvcr.data.rank import RankData
from lsvcr.data.rank_wide import WideBatch, WideStream
from lsvcr.data.store import Dataset
from lsvcr.llm.wide import TASTE, WIDE_REC, TextStates
from lsvcr.schema import Split, Task
from lsvcr.settings import AlignSettings
from lsvcr.training.align_build import AlignParts
from lsvcr.training.untuned import untuned_states
from lsvcr.utils.distributed import rank, world_size
from lsvcr.utils.errors import UserError


class WideBatches:
    """The wide batches of this process.

    Args:
        streams: of all processes, by the name of their loss.
        cache: the states of all texts.
        device: where batches go.
    """

    def __init__(
        self, streams: Mapping[str, WideStream | TasteStream], cache: TextStates, device: torch.device
    ) -> None:
        self._streams, self.cache, self._device = streams, cache, device

    @property
    def names(self) -> list[str]:
        """Names of the losses."""
        return list(self._streams)

    def batches(self, number: int) -> list[WideBatch | TasteBatch]:
        """This process's part of each joined batch `number`."""
        streams = self._streams.values()
        return [stream.batch(number, rank(), world_size()).to(self._device) for stream in streams]


def wide_batches(
    settings: AlignSettings, dataset: Dataset, parts: AlignParts, device: torch.device
) -> WideBatches | None:
    """What `settings` ask for; None without wide batches.

    Raises:
        UserError: the untuned vectors are missing or of another LLM, or a process would have no part.
    """
    streams: dict[str, WideStream | TasteStream] = {}
    bank, draws = parts.collator.bank, settings.wide_samples
    if settings.wide_titles:
        longest = settings.max_position
        data = RankData(dataset, Task.REC, Split.TRAIN, max_videos=longest, max_entries=longest, joint=True)
        streams[WIDE_REC] = WideStream(
            data, bank, titles=settings.wide_titles, per_title=draws, seed=settings.seed
        )
        _check_parts("wide_titles", settings.wide_titles, len(streams[WIDE_REC]), dataset)
    if settings.taste_texts:
        streams[TASTE] = TasteStream(
            dataset, bank, texts=settings.taste_texts, per_text=draws, seed=settings.seed
        )
        _check_parts("taste_texts", settings.taste_texts, len(streams[TASTE]), dataset)
    if not streams:
        return None
    return WideBatches(streams, TextStates(*untuned_states(dataset, settings, parts.untuned), device), device)


def _check_parts(flag: str, wanted: int, found: int, dataset: Dataset) -> None:
    if min(wanted, found) < world_size():
        raise UserError(
            f"--{flag} {wanted}, {found} texts to learn from in {dataset.root}, {world_size()} processes: every "
            "process needs one of its own; give more, or 0 for none"
        )
