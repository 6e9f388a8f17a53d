"""Records in alpaca's form, {instruction, input, output}, from (history, next title): what a generative LLM learns.

The input tells the history's titles, oldest first, between quotation marks; the output is the next title, quoted
alike. A video without a title can be neither told nor asked for: it is left out of histories, and a training sample
that asks for it is left out as a whole.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from lsvcr.baselines.generative_settings import AlpacaSettings, RecordSettings
from lsvcr.data.draws import drawn_rows
from lsvcr.data.rank import RankData
from lsvcr.data.store import Dataset
from lsvcr.schema import PAD, Split, Task
from lsvcr.settings.bounds import check_bounds
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import atomic_file
from lsvcr.utils.logging import get_logger
from lsvcr.utils.seeding import generator

QUOTES = {"double": '"', "single": "'", "none": ""}
NOTHING = "none so far"
"""Stands where a history has no title to tell."""

_BLOCK = 4096
_INSTRUCTION = 1
"""Purpose of a random stream."""

_log = get_logger(__name__)


@dataclass(frozen=True)
class Record:
    """One record, kept in parts so that a prompt that is too long can lose its oldest titles.

    Attributes:
        row: sample number in its split.
        instruction: what is asked.
        history_text: what stands before the titles.
        titles: of the history, oldest first, without quotation marks.
        target: title of the next video, empty where it has none.
        quote: mark on either side of each title.
    """

    row: int
    instruction: str
    history_text: str
    titles: tuple[str, ...]
    target: str
    quote: str

    @property
    def input(self) -> str:
        """What the LLM is told of the user."""
        told = ", ".join(quoted(title, self.quote) for title in self.titles)
        return self.history_text + (told or NOTHING)

    @property
    def output(self) -> str:
        """What the LLM shall say."""
        return quoted(self.target, self.quote)

    def latest(self, count: int) -> "Record":
        """The same record with its latest `count` titles alone."""
        return replace(self, titles=self.titles[len(self.titles) - count :])

    def to_json(self) -> dict[str, str]:
        """The three texts that alpaca's form has."""
        return {"instruction": self.instruction, "input": self.input, "output": self.output}


def quoted(title: str, quote: str) -> str:
    """A title between quotation marks, on one line: line breaks and runs of blanks become one blank.

    >>> quoted("What's\\n up", "'")
    "'What's up'"
    """
    return f"{quote}{' '.join(title.split())}{quote}"


def unquoted(text: str, quote: str) -> str:
    """The title in what an LLM has said: its first line without blanks around it and one quotation mark a side.

    >>> unquoted(' "Heat (1995)"\\n\\n### Instruction:', '"')
    'Heat (1995)'
    >>> unquoted(quoted('"Heroes"', '"'), '"')
    '"Heroes"'
    """
    lines = text.strip().splitlines()
    title = lines[0].strip() if lines else ""
    if quote and title.startswith(quote):
        title = title[len(quote) :]
        # An answer that was cut off has no closing mark.
        title = title[: -len(quote)] if title.endswith(quote) else title
    return title.strip()


class RecordSource:
    """Makes the records of a dataset's Rec samples.

    Args:
        dataset: open.
        settings: how they are worded.

    Raises:
        UserError: an empty instruction, or a history of no length.
    """

    def __init__(self, dataset: Dataset, settings: RecordSettings) -> None:
        self.dataset, self.settings = dataset, settings
        self._instructions = tuple(part.strip() for part in settings.instruction.split("|"))
        if not all(self._instructions):
            raise UserError("--instruction: one of the texts between | is empty")
        if settings.max_history < 1:
            raise UserError(f"--max_history {settings.max_history} must be at least 1")
        self._titles = np.array([" ".join(title.split()) for title in dataset.titles()], dtype=object)

    def rows(self, split: Split, limit: int) -> np.ndarray:
        """Sample numbers (n,) int64, rising: all, or `limit` of them drawn by the settings' seed; 0 = all.

        Of the training split only samples whose target has a title.
        """
        samples = self.dataset.samples(Task.REC, split)
        rows = np.arange(len(samples), dtype=np.int64)
        if split is Split.TRAIN:
            rows = rows[self._titles[samples.video].astype(bool)]
        return drawn_rows(rows, limit, self.settings.seed, split)

    def records(self, split: Split, rows: np.ndarray) -> Iterator[Record]:
        """The records of sample numbers `rows` (n,), in that order."""
        data = RankData(self.dataset, Task.REC, split)
        quote = QUOTES[self.settings.quotes]
        number = list(Split).index(split)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            seen = data.seen_videos(block)
            targets = data.samples.video[block]
            for row, first, count, target in zip(block, seen.starts, seen.counts, targets, strict=True):
                yield Record(
                    row=int(row),
                    instruction=self._instruction(number, int(row)),
                    history_text=self.settings.history_text,
                    titles=self._latest(seen.items[first : first + count]),
                    target=str(self._titles[target]),
                    quote=quote,
                )

    def _latest(self, videos: np.ndarray) -> tuple[str, ...]:
        """The latest titled videos of a history, oldest first."""
        titles: list[str] = []
        for video in videos[::-1]:
            if video != PAD and self._titles[video]:
                titles.append(self._titles[video])
            if len(titles) == self.settings.max_history:
                break
        return tuple(reversed(titles))

    def _instruction(self, split: int, row: int) -> str:
        if len(self._instructions) == 1:
            return self._instructions[0]
        rng = generator(self.settings.seed, _INSTRUCTION, split, row)
        return self._instructions[int(rng.integers(len(self._instructions)))]


def write_alpaca(dataset: Dataset, settings: AlpacaSettings) -> int:
    """Write the records of a split as JSON lines, whole or not at all.

    Returns:
        How many.

    Raises:
        UserError: settings out of range, no record, or a place that cannot be written to.
    """
    check_bounds(settings)
    source, split = RecordSource(dataset, settings), Split(settings.split)
    rows = source.rows(split, settings.max_train_samples if split is Split.TRAIN else 0)
    if not len(rows):
        raise UserError(
            f"{dataset.root} has no Rec sample with a title in its {split.value} split: nothing to write"
        )
    with (
        atomic_file(settings.out) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as stream,
    ):
        for record in source.records(split, rows):
            stream.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
    _log.info("%d records in %s", len(rows), settings.out)
    return len(rows)


def wording(settings: RecordSettings) -> dict[str, object]:
    """The settings that decide what a record says, for manifests; a run and its generations must share them."""
    names: Sequence[str] = ("instruction", "history_text", "quotes", "max_history")
    return {name: value for name, value in asdict(settings).items() if name in names}
