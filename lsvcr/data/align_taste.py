"""Taste batches of stage one: some texts, and for each a few of the people who liked it.

A person is shown by other texts that they liked, titles and comments alike. What such texts share beyond their words is
what people's taste is about, and a pair of them costs no prompt.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lsvcr.data.draws import integers
from lsvcr.data.joint import held_out_from
from lsvcr.data.rank_wide import FreshTexts
from lsvcr.data.rounds import Rounds
from lsvcr.data.spans import Spans, rows_of
from lsvcr.data.store import Csr, Dataset
from lsvcr.data.text_bank import TextBank
from lsvcr.schema import Split

SHOWN = 8
"""Texts drawn to show a person; those that turn out to be the text in question are left out."""

_ORDER_STREAM, _LIKER_STREAM, _SHOWN_STREAM = 64, 65, 66


@dataclass
class TasteBatch(FreshTexts):
    """Fresh texts and people who liked them. Codes are those of `video_code` and `comment_code`.

    Attributes:
        codes: (n,) int64, the fresh texts of this process; N of all processes.
        texts: their n token id lists; empty where nothing is to be read.
        shown: (M,) int64 codes of the texts that show people.
        owners: (M,) int64 in [0, Q), the person each of them shows; every person has one.
        labels: (Q,) int64 in [0, N), the text in question among those of all processes.
        liked: (Q, N) bool, which of these the person liked.
    """

    shown: Tensor
    owners: Tensor
    labels: Tensor
    liked: Tensor


class TasteStream:
    """The taste batch of every micro-step and process: a function of (seed, number).

    Process r of W takes the r-th part of a joined batch, so that this is the same however it is cut.

    Args:
        dataset: whose training events are used (`liked_texts`).
        bank: token ids; None where texts are not read, only their vectors looked up.
        texts: fresh ones of one micro-step, of all processes together (`Rounds`).
        per_text: most people of a text that learn in one step.
        seed: of order and draws.
    """

    def __init__(
        self, dataset: Dataset, bank: TextBank | None, *, texts: int, per_text: int, seed: int
    ) -> None:
        self._bank, self._per_text, self._seed = bank, per_text, seed
        self._by_user = liked_texts(dataset)
        counts = np.diff(self._by_user.offsets)
        users = np.repeat(np.arange(len(counts)), counts)
        pairs = np.flatnonzero(counts[users] > 1)  # one text alone shows nobody beside it
        pairs = pairs[np.argsort(self._by_user.items[pairs], kind="stable")]
        self._codes, starts = np.unique(self._by_user.items[pairs], return_index=True)
        self._likers = Csr(np.append(starts, len(pairs)), users[pairs])
        self._rounds = Rounds(len(self._codes), texts, seed, _ORDER_STREAM)

    def __len__(self) -> int:
        """Texts there are."""
        return len(self._codes)

    def batch(self, number: int, rank: int, world: int) -> TasteBatch:
        """The part of process `rank` of `world` in the joined batch `number`."""
        joined = self._rounds.batch(number)
        places = np.array_split(np.arange(len(joined)), world)[rank]
        people, labels, streams = self._people(number, joined, places)
        every = rows_of(self._by_user.offsets, self._by_user.items, people)
        place = integers((self._seed, number, _SHOWN_STREAM), streams, SHOWN, every.counts[:, None])
        shown = every.items[every.starts[:, None] + place]
        others = shown != self._codes[joined[labels], None]
        seen = others.any(axis=1)
        shown, others, people, labels = shown[seen], others[seen], people[seen], labels[seen]
        every = Spans(every.starts[seen], every.counts[seen], every.items)
        codes = self._codes[joined]
        grid = np.broadcast_arrays(np.arange(len(people))[:, None], codes[None, :])
        own = codes[places]
        return TasteBatch(
            codes=torch.from_numpy(own),
            texts=[] if self._bank is None else list(self._bank.ids(own.tolist()).values()),
            shown=torch.from_numpy(shown[others]),
            owners=torch.from_numpy(np.nonzero(others)[0]),
            labels=torch.from_numpy(labels),
            liked=torch.from_numpy(every.contains(*grid)),
        )

    def _people(
        self, number: int, joined: np.ndarray, places: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Q people of the texts at `places` of the joined batch: users, places, and numbers for their random streams.

        All who liked a text if they are few; else draws, in which a person may come twice.
        """
        likers = rows_of(self._likers.offsets, self._likers.items, joined[places])
        slots = np.arange(self._per_text)
        drawn = integers((self._seed, number, _LIKER_STREAM), places, self._per_text, likers.counts[:, None])
        few = likers.counts[:, None] <= self._per_text
        inside = ~few | (slots < likers.counts[:, None])
        person = likers.starts[:, None] + np.where(few & inside, slots, drawn)
        labels, streams = np.broadcast_arrays(
            places[:, None], places[:, None] * self._per_text + slots[None, :]
        )
        return likers.items[person[inside]], labels[inside], streams[inside]


def liked_texts(dataset: Dataset) -> Csr:
    """Row u: the codes of the titles and comments that user u liked, each once, int64; row 0 is empty.

    Training events alone: of a user, those before the history of the first validation or test sample ends; under a
    temporal split also before the first cut time.
    """
    stride = 2 * (max(dataset.n_videos, dataset.n_comments) + 1)
    keys = []
    ends = held_out_from(dataset, (Split.VAL, Split.TEST))
    cuts = dataset.manifest["split"]["cut_times"]
    for events, end, odd in (
        (dataset.video_events, ends[0], 0),
        (dataset.comment_events, ends[1], 1),
    ):
        owners = np.repeat(np.arange(dataset.n_users + 1), np.diff(events.offsets))
        known = np.arange(len(owners)) < end[owners]
        if cuts is not None:
            known &= events.times < cuts["val"]
        keys.append(owners[known] * stride + 2 * events.items[known].astype(np.int64) + odd)
    joined = np.unique(np.concatenate(keys))
    return Csr(np.searchsorted(joined, np.arange(dataset.n_users + 2) * stride), joined % stride)
