"""Stage-one batches: samples in, plain tensors out, every distinct text of the batch once."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from lsvcr.data.align_samples import AlignSample, AlignSamples
from lsvcr.data.prompts import Entry, PromptBuilder
from lsvcr.data.text_bank import TextBank, comment_code, video_code
from lsvcr.schema import Task
from lsvcr.utils.seeding import generator

_ORDER_STREAM = 12
_SAMPLE_STREAM = 13
NO_KEY = -1
"""Pads `AlignBatch.positive_keys`; never the key of a text."""


@dataclass
class AlignBatch:
    """B samples of both tasks in any order. Index tensors are int64; index 0 of `texts` is the empty text."""

    rows: Tensor
    """(B,) `AlignSample.row`."""
    is_rec: Tensor
    """(B,) bool: Rec; else CommRank."""
    sequences: list[list[int]]
    """Token ids of each sample's prompt and, behind it, response."""
    response_lengths: list[int]
    """How many of them, at the end, are the response: at least 1, its end token. By number, not by id, so that an
    end token that is also the padding token counts."""
    texts: list[list[int]]
    """Token ids of the distinct texts of the SR branch: titles, comments, targets."""
    video_ids: Tensor
    """(B, V) padded on the right, as the next three."""
    video_title: Tensor
    """(B, V) text of each entry's title."""
    video_comment: Tensor
    """(B, V) text of the comment shown with it."""
    comment_video_ids: Tensor
    """(B, C) videos of the comment history, padded on the right."""
    comment_title: Tensor
    """(B, C) text of each entry's title."""
    comment_texts: Tensor
    """(K,) texts of all comments of all entries."""
    comment_segments: Tensor
    """(K,) the entry b * C + c each of them belongs to."""
    target: Tensor
    """(B,) text of the target."""
    watched: Tensor
    """(B,) text of the watched video's title (CommRank), 0 for Rec."""
    target_keys: Tensor
    """(B,) keys of the targets: equal keys are equal texts, no negatives of one another."""
    positive_keys: Tensor
    """(B, P) keys of all positives of a sample, padded with -1."""

    def __len__(self) -> int:
        return len(self.rows)

    def response(self, row: int) -> list[int]:
        """The tokens that sample `row` must say."""
        return self.sequences[row][-self.response_lengths[row] :]

    @property
    def tokens(self) -> int:
        """Real tokens that go through the LLM."""
        return sum(map(len, self.sequences)) + sum(map(len, self.texts))

    def to(self, device: torch.device) -> "AlignBatch":
        """The batch with its tensors on `device`."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


class AlignCollator:
    """Turns samples into an `AlignBatch`.

    Args:
        bank: texts as token ids, see `lsvcr.llm.encoder.tokenize`.
        prompts: builds prompts and responses.
    """

    def __init__(self, bank: TextBank, prompts: PromptBuilder) -> None:
        self.bank, self._prompts = bank, prompts

    def __call__(self, samples: Sequence[AlignSample]) -> AlignBatch:
        """A batch of the given samples, in their order."""
        ids = self.bank.ids([code for sample in samples for code in _all_codes(sample)])
        texts = _DistinctTexts(ids)
        responses = list(map(self._prompts.response, self.bank.texts(list(map(_target_code, samples)))))
        return AlignBatch(
            rows=torch.tensor([sample.row for sample in samples]),
            is_rec=torch.tensor([sample.task is Task.REC for sample in samples]),
            sequences=[
                self._prompt(sample, ids) + own for sample, own in zip(samples, responses, strict=True)
            ],
            response_lengths=list(map(len, responses)),
            **_histories(samples, texts),
            target=torch.tensor([texts.index(_target_code(sample)) for sample in samples]),
            watched=torch.tensor([texts.index(video_code(sample.watched)) for sample in samples]),
            **self._keys(samples),
            texts=texts.listed,
        )

    def prompts(self, samples: Sequence[AlignSample]) -> list[list[int]]:
        """The samples' prompts alone, as token ids: what is read where nothing is to be learned."""
        ids = self.bank.ids([code for sample in samples for code in _all_codes(sample)])
        return [self._prompt(sample, ids) for sample in samples]

    def _prompt(self, sample: AlignSample, ids: dict[int, list[int]]) -> list[int]:
        def inner(code: int) -> Sequence[int]:
            return self._prompts.inner(ids[code])

        videos = [
            Entry(inner(video_code(entry.video)), [inner(comment_code(entry.llm))]) for entry in sample.videos
        ]
        comments = [
            Entry(inner(video_code(entry.video)), [inner(comment_code(comment)) for comment in entry.llm])
            for entry in sample.comments
        ]
        watched = None if sample.task is Task.REC else inner(video_code(sample.watched))
        return self._prompts.prompt(videos, comments, watched, sample.comments_first)

    def _keys(self, samples: Sequence[AlignSample]) -> dict[str, Tensor]:
        code_of = [_code_maker(sample.task) for sample in samples]
        codes = [
            [code(item) for item in sample.positives] for code, sample in zip(code_of, samples, strict=True)
        ]
        keys = self.bank.keys([code for row in codes for code in row])
        targets = [keys[_target_code(sample)] for sample in samples]
        return {
            "target_keys": torch.tensor(targets),
            "positive_keys": _padded([[keys[code] for code in row] for row in codes], NO_KEY),
        }


class _DistinctTexts:
    """Numbers the texts of a batch, equal token ids alike; 0 is the empty text."""

    def __init__(self, ids: dict[int, list[int]]) -> None:
        self._ids = ids
        self._numbers: dict[tuple[int, ...], int] = {(): 0}
        self._by_code: dict[int, int] = {}

    def index(self, code: int) -> int:
        """The number of a text."""
        if code not in self._by_code:
            self._by_code[code] = self._numbers.setdefault(tuple(self._ids[code]), len(self._numbers))
        return self._by_code[code]

    @property
    def listed(self) -> list[list[int]]:
        """All texts that `index` was asked for, in order of their numbers."""
        return [list(text) for text in self._numbers]


def _histories(samples: Sequence[AlignSample], texts: _DistinctTexts) -> dict[str, Tensor]:
    """Index tensors of both histories."""
    width = max(1, max(len(sample.comments) for sample in samples))
    flat, segments = [], []
    for row, sample in enumerate(samples):
        for step, entry in enumerate(sample.comments):
            flat += [texts.index(comment_code(comment)) for comment in entry.sr]
            segments += [row * width + step] * len(entry.sr)
    return {
        "video_ids": _padded([[entry.video for entry in sample.videos] for sample in samples]),
        "video_title": _padded([[texts.index(video_code(e.video)) for e in s.videos] for s in samples]),
        "video_comment": _padded([[texts.index(comment_code(e.sr)) for e in s.videos] for s in samples]),
        "comment_video_ids": _padded([[entry.video for entry in sample.comments] for sample in samples]),
        "comment_title": _padded([[texts.index(video_code(e.video)) for e in s.comments] for s in samples]),
        "comment_texts": torch.tensor(flat, dtype=torch.int64),
        "comment_segments": torch.tensor(segments, dtype=torch.int64),
    }


def _padded(rows: Sequence[Sequence[int]], fill: int = 0) -> Tensor:
    """Rows of different lengths as one (B, L) tensor, padded on the right; L is at least 1."""
    width = max(1, max(map(len, rows)))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def _code_maker(task: Task) -> Callable[[int], int]:
    return video_code if task is Task.REC else comment_code


def _target_code(sample: AlignSample) -> int:
    return _code_maker(sample.task)(sample.target)


def _all_codes(sample: AlignSample) -> Iterator[int]:
    """Every text that a sample shows in either branch."""
    for video in sample.videos:
        yield from (video_code(video.video), comment_code(video.llm), comment_code(video.sr))
    for entry in sample.comments:
        yield video_code(entry.video)
        yield from map(comment_code, (*entry.llm, *entry.sr))
    yield from (_target_code(sample), video_code(sample.watched))


class TrainingStream(TorchDataset[AlignSample]):
    """The endless order of training: one permutation of all samples behind another.

    Position p is sample `permutation(p // n)[p % n]`; order is a function of (seed, epoch), what a sample draws
    of (seed, epoch, sample). Where a run stands is thus one number, whatever the number of processes.
    """

    def __init__(self, samples: AlignSamples, seed: int) -> None:
        self._samples, self._seed = samples, seed
        self._permutations: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Positions of one epoch; later positions are legal too."""
        return len(self._samples)

    def __getitem__(self, position: int) -> AlignSample:
        epoch, place = divmod(position, len(self._samples))
        index = int(self._permutation(epoch)[place])
        rng = generator(self._seed, _SAMPLE_STREAM, epoch, int(self._samples.rows[index]))
        return self._samples.training(index, rng)

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            # A batch may reach over the end of an epoch: the one before is kept.
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations[epoch] = generator(self._seed, _ORDER_STREAM, epoch).permutation(
                len(self._samples)
            )
        return self._permutations[epoch]


def micro_batches(first: int, last: int, *, batch: int, rank: int, world: int) -> Iterator[list[int]]:
    """Positions of this process's micro-batches `first` ... `last - 1`.

    Micro-batch m of all processes together is the positions m * world * batch and following; process r takes
    the r-th part. So one process with 2 B samples and two with B see the same joined batch.
    """
    for number in range(first, last):
        start = (number * world + rank) * batch
        yield list(range(start, start + batch))


def training_loader(
    stream: TrainingStream, collator: AlignCollator, batches: Iterable[list[int]], workers: int
) -> Iterator[AlignBatch]:
    """Batches of the given positions, built by `workers` processes (0 = here).

    The loader draws nothing from global generators, so that an interrupted run sees the same numbers.
    """
    loader = DataLoader(
        stream,
        batch_sampler=batches,
        collate_fn=collator,
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),
        # A forked process would inherit Polars' thread pool without its threads and wait for them for ever.
        multiprocessing_context="spawn" if workers else None,
    )
    return iter(loader)
