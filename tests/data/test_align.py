"""Stage-one samples and batches, whole tensors where that is possible."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import tensor

from lsvcr.data.align import AlignCollator, TrainingStream, micro_batches, training_loader
from lsvcr.data.align_samples import AlignSample, AlignSamples, CommentEntry, VideoEntry, latest_groups
from lsvcr.data.prompts import PromptBuilder
from lsvcr.data.store import Dataset
from lsvcr.data.text_bank import TextBank, comment_code, text_key, video_code
from lsvcr.llm.encoder import tokenize
from lsvcr.llm.tiny import tiny_tokenizer
from lsvcr.schema import Split, Task
from lsvcr.utils.errors import UserError

TOKENIZER = tiny_tokenizer()
TITLES = ["", "aa", "b", "aa", ""]
COMMENTS = ["", "x", "yy", "z", "X "]
"""Titles 1 and 3 are equal; comments 1 and 4 are but for case and space; title 4 is empty."""


class Table:
    """A text table held in memory."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.taken = texts, []

    def take(self, indices: list[int]) -> list[str]:
        self.taken += indices
        return [self.texts[index] for index in indices]


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def bank() -> TextBank:
    return TextBank(Table(TITLES), Table(COMMENTS), lambda texts: tokenize(TOKENIZER, texts, 16))


def collator(tokenizer=TOKENIZER) -> AlignCollator:
    prompts = PromptBuilder(tokenizer, language="en", max_source=1000, max_target=8, max_text=16)
    return AlignCollator(bank(), prompts)


REC = AlignSample(
    row=4,
    task=Task.REC,
    videos=[VideoEntry(1, llm=1, sr=2), VideoEntry(2, llm=0, sr=0)],
    comments=[CommentEntry(3, llm=[2], sr=[1, 3])],
    target=2,
    watched=0,
    positives=[2],
    comments_first=False,
)
COMM_RANK = AlignSample(
    row=7,
    task=Task.COMM_RANK,
    videos=[VideoEntry(4, llm=3, sr=3)],
    comments=[CommentEntry(1, llm=[1], sr=[1]), CommentEntry(2, llm=[2], sr=[2])],
    target=4,
    watched=1,
    positives=[3, 4],
    comments_first=True,
)
EMPTY = AlignSample(
    row=6, task=Task.REC, videos=[], comments=[], target=4, watched=0, positives=[4], comments_first=False
)


def test_text_branch_of_a_batch_in_full() -> None:
    batch = collator()([COMM_RANK, REC, EMPTY])
    distinct = [[], *map(ids, ("x", "yy", "z", "b", "aa", "X "))]
    assert batch.texts[0] == []
    assert sorted(batch.texts) == sorted(distinct)
    number = {tuple(text): index for index, text in enumerate(batch.texts)}
    x, yy, z, b, aa, shout = (number[tuple(ids(text))] for text in ("x", "yy", "z", "b", "aa", "X "))
    expected = {
        "rows": tensor([7, 4, 6]),
        "is_rec": tensor([False, True, True]),
        "video_ids": tensor([[4, 0], [1, 2], [0, 0]]),
        "video_title": tensor([[0, 0], [aa, b], [0, 0]]),  # title 4 is empty: text 0
        "video_comment": tensor([[z, 0], [yy, 0], [0, 0]]),  # the SR model's comments, not the LLM's
        "comment_video_ids": tensor([[1, 2], [3, 0], [0, 0]]),
        "comment_title": tensor([[aa, b], [aa, 0], [0, 0]]),
        "comment_texts": tensor([x, yy, x, z]),
        "comment_segments": tensor([0, 1, 2, 2]),  # entry b * 2 + c
        "target": tensor([shout, b, 0]),
        "watched": tensor([aa, 0, 0]),
        "target_keys": tensor([text_key("x"), text_key("b"), text_key("")]),  # "X " is "x" to a reader
        "positive_keys": tensor([[text_key("z"), text_key("x")], [text_key("b"), -1], [text_key(""), -1]]),
    }
    for name, values in expected.items():
        assert torch.equal(getattr(batch, name), values), name


def test_language_branch_is_prompt_and_response() -> None:
    batch = collator()([REC, COMM_RANK, EMPTY])
    end = TOKENIZER.eos_token_id
    said = [[*ids("b"), end], [*ids("X "), end], [end]]
    assert [batch.response(row) for row in range(3)] == said
    assert batch.response_lengths == list(map(len, said))
    for sequence, response in zip(batch.sequences, said, strict=True):
        # The last prompt token is the line break that ends the request.
        assert sequence[-len(response) - 1] == ids("\n")[0]
        assert end not in sequence[: -len(response)]
    assert batch.tokens == sum(map(len, batch.sequences)) + sum(map(len, batch.texts))


def test_the_end_token_is_learned_where_it_is_the_padding_too() -> None:
    """Qwen's base models pad with their end token: masking labels by id would hide the end."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    batch = collator(tokenizer)([REC, COMM_RANK])
    assert [batch.response(row)[-1] for row in range(2)] == [tokenizer.eos_token_id] * 2


def test_the_two_branches_see_their_own_comments() -> None:
    batch = collator()([REC])
    prompt = TOKENIZER.decode(batch.sequences[0])
    assert '"aa", with the comment "x"' in prompt
    assert 'below "aa": "yy"' in prompt
    assert "z" not in prompt.split("Comments this person")[1].split("Give")[0]


def test_every_text_is_read_once() -> None:
    contents = Table(COMMENTS)
    made = TextBank(Table(TITLES), contents, lambda texts: tokenize(TOKENIZER, texts, 16))
    made.ids([comment_code(1), comment_code(2), comment_code(1), 0])
    made.ids([comment_code(2), comment_code(3), video_code(1)])
    assert contents.taken == [1, 2, 3]


def test_text_key_ignores_case_width_and_spacing() -> None:
    assert text_key("Ｔｅａ  time ") == text_key("tea TIME")
    assert text_key("tea time") != text_key("teatime")
    assert 0 <= text_key("x") < 2**63


def test_histories_hold_nothing_at_or_after_the_cut(tiny_dataset: Dataset) -> None:
    for split in Split:
        samples = AlignSamples(tiny_dataset, split, list(Task), max_videos=50, max_comments=50)
        for index, number in enumerate(samples.rows):
            table = tiny_dataset.samples(Task.COMM_RANK if number % 2 else Task.REC, split)
            cut, user = int(table["cut"][number // 2]), int(table["user"][number // 2])
            sample = samples.evaluation(index)
            events = tiny_dataset.video_events
            own = slice(int(events.offsets[user]), int(events.offsets[user + 1]))
            earlier = np.asarray(events.items[own])[np.asarray(events.times[own]) < cut]
            seen = [entry.video for entry in sample.videos]
            # What either task holds out is hidden besides (test_joint.py); nothing is hidden from test samples.
            assert seen == earlier.tolist()[: None if split is Split.TEST else len(seen)]
            talk = tiny_dataset.comment_events
            own = slice(int(talk.offsets[user]), int(talk.offsets[user + 1]))
            earlier = np.asarray(talk.items[own])[np.asarray(talk.times[own]) < cut]
            touched = [c for entry in sample.comments for c in entry.sr]
            assert touched == earlier.tolist()[: None if split is Split.TEST else len(touched)]


def test_evaluation_shows_both_branches_the_most_liked_comment(tiny_dataset: Dataset) -> None:
    samples = AlignSamples(tiny_dataset, Split.VAL, [Task.COMM_RANK], max_videos=3, max_comments=2)
    for index in range(len(samples)):
        sample = samples.evaluation(index)
        assert sample == samples.evaluation(index)
        assert len(sample.videos) <= 3
        assert len(sample.comments) <= 2
        assert sample.target == sample.positives[0]
        assert not sample.comments_first
        for entry in sample.videos:
            comments = tiny_dataset.video_comments.row(entry.video)
            assert entry.llm == entry.sr == (comments[0] if len(comments) else 0)


def test_without_augmentation_both_branches_see_the_same(tiny_dataset: Dataset) -> None:
    samples = AlignSamples(tiny_dataset, Split.TRAIN, list(Task), max_videos=5, max_comments=5, augment=False)
    shown = [samples.training(index, np.random.default_rng(index)) for index in range(len(samples))]
    assert all(video.llm == video.sr for sample in shown for video in sample.videos)
    assert all(set(entry.llm) <= set(entry.sr) for sample in shown for entry in sample.comments)
    assert {sample.comments_first for sample in shown} == {False, True}


def test_latest_groups_are_whole_entries(tiny_dataset: Dataset) -> None:
    events = tiny_dataset.comment_events
    user = int(np.argmax(np.diff(events.offsets)))
    end = int(events.offsets[user + 1])
    every = latest_groups(tiny_dataset, user, end, 99)
    assert len(every) == int(events.groups[end - 1]) + 1
    assert latest_groups(tiny_dataset, user, end, 2) == every[-2:]
    assert latest_groups(tiny_dataset, user, int(events.offsets[user]), 2) == []
    assert latest_groups(tiny_dataset, user, end, 0) == []


def test_order_and_draws_are_functions_of_seed_and_position(tiny_dataset: Dataset) -> None:
    samples = AlignSamples(tiny_dataset, Split.TRAIN, list(Task), max_videos=5, max_comments=5)
    size = len(samples)
    forward = [TrainingStream(samples, seed=1)[p] for p in range(2 * size)]
    fresh = TrainingStream(samples, seed=1)
    assert [fresh[p] for p in reversed(range(2 * size))] == forward[::-1]
    first, second = ([sample.row for sample in forward[e * size : (e + 1) * size]] for e in (0, 1))
    assert sorted(first) == sorted(second) == sorted(samples.rows.tolist())
    assert first != second
    assert {sample.task for sample in forward[:20]} == set(Task)  # mixed
    assert [TrainingStream(samples, seed=2)[p].row for p in range(size)] != first
    again = {sample.row: sample for sample in forward[size:]}
    assert any(again[sample.row] != sample for sample in forward[:size])  # drawn anew each epoch


def test_a_subset_is_drawn_once_from_the_seed(tiny_dataset: Dataset) -> None:
    def rows(seed: int) -> list[int]:
        made = AlignSamples(
            tiny_dataset, Split.TRAIN, list(Task), max_videos=5, max_comments=5, per_task=9, seed=seed
        )
        assert made.counts() == {Task.REC: 9, Task.COMM_RANK: 9}
        return made.rows.tolist()

    assert rows(1) == rows(1) != rows(2)


def test_two_processes_see_the_batch_of_one() -> None:
    one = list(micro_batches(3, 6, batch=4, rank=0, world=1))
    two = [list(micro_batches(3, 6, batch=2, rank=rank, world=2)) for rank in (0, 1)]
    assert one == [a + b for a, b in zip(*two, strict=True)]
    assert one[0] == [12, 13, 14, 15]


@pytest.mark.parametrize("workers", [0, 1])
def test_worker_processes_change_nothing(tiny_dataset: Dataset, workers: int) -> None:
    samples = AlignSamples(tiny_dataset, Split.TRAIN, list(Task), max_videos=5, max_comments=5)
    prompts = PromptBuilder(TOKENIZER, language="en", max_source=1000, max_target=8, max_text=16)
    texts = TextBank(
        tiny_dataset.titles(), tiny_dataset.contents(), partial(tokenize, TOKENIZER, max_tokens=16)
    )
    made = AlignCollator(texts, prompts)
    state = torch.get_rng_state()
    batches = list(
        training_loader(
            TrainingStream(samples, 1), made, micro_batches(0, 3, batch=2, rank=0, world=1), workers
        )
    )
    assert torch.equal(torch.get_rng_state(), state)
    expected = [made([TrainingStream(samples, 1)[p] for p in (2 * n, 2 * n + 1)]) for n in range(3)]
    for batch, other in zip(batches, expected, strict=True):
        assert batch.sequences == other.sequences
        assert batch.texts == other.texts


def test_no_samples_of_a_task_is_told(tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tiny_dataset.samples(Task.REC, Split.TRAIN)
    table.rows = table.rows[:0]
    monkeypatch.setattr(Dataset, "samples", lambda *_: table)
    with pytest.raises(UserError, match="no train samples of Rec"):
        AlignSamples(tiny_dataset, Split.TRAIN, [Task.REC], max_videos=5, max_comments=5)
