"""Records as token ids: prompts, answers, and batches padded on the left whose labels are told by their place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lsvcr.baselines.alpaca import Record
from lsvcr.data.prompts import special_tokens
from lsvcr.utils.errors import UserError

IGNORED = -100
"""Label of a position that the loss leaves out."""

_ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_PLACE = "RECORD GOES HERE"
"""What a chat template is asked to frame, and where it is then cut in two."""


@dataclass(frozen=True)
class Example:
    """A prompt and its answer as token ids; the answer ends with the tokenizer's end token."""

    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class LmBatch:
    """B examples, padded on the left; all int64 (B, T) but `mask`, which is bool.

    Attributes:
        ids: token ids.
        mask: real positions.
        positions: 0, 1, ... from each row's first real token.
        labels: the ids that the loss counts, at their own places; `IGNORED` elsewhere.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    labels: Tensor


class PromptWriter:
    """Turns records into token ids.

    Args:
        tokenizer: of the LLM; what it puts around a text by itself opens each prompt once.
        template: `alpaca`, or `chat`, the tokenizer's own.
        max_source: most tokens of a prompt.
        max_target: most tokens of an answer, its end included.

    Raises:
        UserError: `chat` for a tokenizer without a template, or lengths that hold nothing.
    """

    def __init__(
        self, tokenizer: Any, template: Literal["alpaca", "chat"], max_source: int, max_target: int
    ) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._max_source, self._max_target = max_source, max_target
        if max_target < 2:
            raise UserError(f"--max_target_length {max_target}: an answer needs a token and its end")
        self.end = int(tokenizer.eos_token_id)
        self._opening, self._closing = self._frame()

    def plain(self, text: str) -> list[int]:
        """Token ids of `text` alone; a special token typed in it stays plain text."""
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def prompt(self, record: Record) -> list[int]:
        """Token ids of a record's prompt, at most `max_source`: the oldest titles go first, nothing else does.

        Raises:
            UserError: the request does not fit even with the latest title alone.
        """
        whole = self._ids(record)
        if len(whole) <= self._max_source:
            return whole
        # The most titles that fit, by bisection; `fits` is known to fit once the loop has ended.
        fits, too_many = min(1, len(record.titles)), len(record.titles)
        shortest = self._ids(record.latest(fits))
        if len(shortest) > self._max_source:
            raise UserError(
                f"--max_source_length {self._max_source} cannot hold the request and one title of sample {record.row}: "
                f"give at least {len(shortest)}"
            )
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if len(self._ids(record.latest(middle))) <= self._max_source:
                fits = middle
            else:
                too_many = middle
        return self._ids(record.latest(fits))

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer, cut on the right to leave room for its end."""
        return [*self.plain(text)[: self._max_target - 1], self.end]

    def whole_answer(self, text: str) -> list[int] | None:
        """Token ids of an answer, or None where it would have to be cut."""
        ids = self.plain(text)
        return [*ids, self.end] if len(ids) < self._max_target else None

    def example(self, record: Record) -> Example:
        """A record to learn from."""
        return Example(self.prompt(record), self.answer(record.output))

    def _ids(self, record: Record) -> list[int]:
        if self._template == "alpaca":
            text = _ALPACA.format(instruction=record.instruction, input=record.input)
        else:
            text = f"{record.instruction}\n{record.input}"
        return [*self._opening, *self.plain(text), *self._closing]

    def _frame(self) -> tuple[list[int], list[int]]:
        """The ids before and after a record's text. Of a chat template they are special tokens that no title may
        forge, which is why they are kept apart from it."""
        if self._template == "alpaca":
            return special_tokens(self._tokenizer)[0], []
        if not getattr(self._tokenizer, "chat_template", None):
            raise UserError(
                "--template chat: this LLM's tokenizer has no chat template; use --template alpaca"
            )
        framed = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": _PLACE}], add_generation_prompt=True, tokenize=False
        )
        head, _, tail = framed.partition(_PLACE)
        before, after = (
            self._tokenizer(part, add_special_tokens=False)["input_ids"] for part in (head, tail)
        )
        return list(before), list(after)


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids (B, T) int64 with `pad` on the left, and the mask (B, T) bool of real positions."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], dtype=torch.int64)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width)[None, :] >= width - lengths[:, None]


def positions_of(mask: Tensor) -> Tensor:
    """Positions (B, T) int64 of left-padded rows: 0 for padding and the first real token, then 1, 2, ..."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def collate(examples: Sequence[Example], pad: int, train_on_inputs: bool) -> LmBatch:
    """A batch of examples.

    Args:
        examples: B of them.
        pad: id that fills up; it may be the end token, since labels are told by their place.
        train_on_inputs: the prompt's tokens count too (but for the first, which nothing predicts).
    """
    ids, mask = left_padded([[*example.prompt, *example.answer] for example in examples], pad)
    # Nothing stands before a row's first token that could predict it, padding least of all.
    first = mask & (mask.cumsum(dim=1) == 1)
    labels = ids.masked_fill(~mask | first, IGNORED)
    if not train_on_inputs:
        answers = torch.tensor([len(example.answer) for example in examples])
        before = torch.arange(ids.shape[1])[None, :] < ids.shape[1] - answers[:, None]
        labels = labels.masked_fill(before, IGNORED)
    return LmBatch(ids, mask, positions_of(mask), labels)
