"""Taste batches: who is shown by which texts, and that nothing withheld is among them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lsvcr.data.align_taste import SHOWN, TasteBatch, TasteStream, liked_texts
from lsvcr.data.prepare import prepare
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.data.text_bank import TextBank, comment_code, video_code
from lsvcr.schema import Split, Task
from lsvcr.settings import PrepareSettings


@pytest.fixture(scope="module")
def dataset(tiny_data: Path) -> Dataset:
    return open_dataset(tiny_data)


@pytest.fixture(scope="module")
def by_time(tiny_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("temporal") / "data"
    prepare(
        PrepareSettings(source="kuaicomt", raw=str(tiny_raw), out=str(out), split="temporal", user_core=3)
    )
    return open_dataset(out)


def stream(dataset: Dataset, texts: int = 30, per_text: int = 3, seed: int = 0) -> TasteStream:
    bank = TextBank(dataset.titles(), dataset.contents(), lambda found: [list(map(ord, t)) for t in found])
    return TasteStream(dataset, bank, texts=texts, per_text=per_text, seed=seed)


def plain_liked(dataset: Dataset) -> list[set[int]]:
    """A second implementation, event by event: what each user liked before their first withheld sample."""
    liked: list[set[int]] = [set() for _ in range(dataset.n_users + 1)]
    cuts = dataset.manifest["split"]["cut_times"]
    for task, events, code in (
        (Task.REC, dataset.video_events, video_code),
        (Task.COMM_RANK, dataset.comment_events, comment_code),
    ):
        withheld = [dataset.samples(task, split) for split in (Split.VAL, Split.TEST)]
        for user in range(1, dataset.n_users + 1):
            cut = min(
                (int(s.cut[row]) for s in withheld for row in np.flatnonzero(s.user == user)), default=None
            )
            for event in range(events.offsets[user], events.offsets[user + 1]):
                time = int(events.times[event])
                if (cut is None or time < cut) and (cuts is None or time < cuts["val"]):
                    liked[user].add(code(int(events.items[event])))
    return liked


@pytest.mark.parametrize("split", ["dataset", "by_time"])
def test_liked_texts_are_what_training_may_know(split: str, request: pytest.FixtureRequest) -> None:
    data: Dataset = request.getfixturevalue(split)
    table = liked_texts(data)
    found = [table.row(user).tolist() for user in range(data.n_users + 1)]
    assert [set(row) for row in found] == plain_liked(data)
    assert all(len(set(row)) == len(row) for row in found)
    assert any(code % 2 for row in found for code in row)
    assert any(code % 2 == 0 for row in found for code in row)


def joined(dataset: Dataset, number: int, world: int = 1, **options: int) -> list[TasteBatch]:
    return [stream(dataset, **options).batch(number, rank, world) for rank in range(world)]


def test_people_like_the_text_and_are_shown_by_others_they_like(dataset: Dataset) -> None:
    liked = plain_liked(dataset)
    shown_texts = 0
    for number in range(5):
        (batch,) = joined(dataset, number)
        codes = batch.codes.tolist()
        for person, label in enumerate(batch.labels.tolist()):
            shown = set(batch.shown[batch.owners == person].tolist())
            row = {codes[place] for place in batch.liked[person].nonzero().flatten().tolist()}
            fits = [own for own in liked if shown | {codes[label]} <= own and row == own & set(codes)]
            assert fits, (number, person)
            assert 1 <= len(shown) <= SHOWN
            assert codes[label] not in shown
            shown_texts += len(shown)
    assert shown_texts > 100


def test_a_text_has_all_its_people_or_as_many_as_asked_for(dataset: Dataset) -> None:
    liked = [own for own in plain_liked(dataset) if len(own) > 1]
    (batch,) = joined(dataset, 0, texts=1000, per_text=3)
    assert sorted(batch.codes.tolist()) == sorted(set().union(*liked))
    for place, code in enumerate(batch.codes.tolist()):
        people = sum(code in own for own in liked)
        assert int((batch.labels == place).sum()) == min(people, 3), code


def test_texts_are_the_fresh_ones_tokens(dataset: Dataset) -> None:
    (batch,) = joined(dataset, 2)
    bank = TextBank(dataset.titles(), dataset.contents(), lambda texts: [])
    assert ["".join(map(chr, text)) for text in batch.texts] == bank.texts(batch.codes.tolist())
    assert batch.tokens == sum(map(len, batch.texts)) > 0
    assert len(set((batch.codes % 2).tolist())) == 2  # titles and comments


@pytest.mark.parametrize("number", [0, 3, 50])
def test_two_processes_share_the_batch_of_one(dataset: Dataset, number: int) -> None:
    (whole,), halves = joined(dataset, number), joined(dataset, number, world=2)
    for name in ("codes", "shown", "labels", "liked"):
        assert torch.equal(torch.cat([getattr(half, name) for half in halves]), getattr(whole, name)), name
    people = [len(half.labels) for half in halves]
    assert torch.equal(torch.cat([halves[0].owners, halves[1].owners + people[0]]), whole.owners)


def test_a_batch_is_a_function_of_seed_and_number(dataset: Dataset) -> None:
    (first,), (again,), (other,) = (joined(dataset, 7), joined(dataset, 7), joined(dataset, 7, seed=1))
    assert torch.equal(first.shown, again.shown)
    assert not torch.equal(first.codes, other.codes)


def test_without_a_bank_nothing_is_read(dataset: Dataset) -> None:
    batch = TasteStream(dataset, None, texts=10, per_text=2, seed=0).batch(0, 0, 1)
    assert batch.texts == []
    assert len(batch.codes) == 10
