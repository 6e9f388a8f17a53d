"""Stage-two batches of a hand-made dataset, tensor by tensor, and what their random draws promise."""

import numpy as np
import pytest
import torch

from lsvcr.data.draws import integers, uniforms
from lsvcr.data.negatives import comment_negatives
from lsvcr.data.rank import RankBatch, RankData
from lsvcr.data.spans import Spans
from lsvcr.data.store import Dataset
from lsvcr.schema import Split, Task
from tests.rank_world import World

# Comments 1-4 belong to video 1, 5-6 to video 2, 7 to video 3; videos 4 and 5 have none.
VIDEO_OF = [1, 1, 1, 1, 2, 2, 3]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three users: one with everything, one without comments, one without videos."""
    return World(
        n_videos=5,
        videos=[[1, 2, 3, 4, 5], [2, 4, 1], []],
        comments=[[(1, 0), (2, 0), (5, 1), (3, 2), (4, 2), (7, 3)], [], [(6, 0), (7, 1)]],
        video_of=VIDEO_OF,
        rec={Split.TRAIN: [(1, 4, 5, 5), (2, 2, 0, 1), (1, 1, 0, 2), (3, 0, 2, 4)]},
        comm_rank={Split.TRAIN: [(1, 5, 4, 1), (3, 0, 1, 3), (2, 3, 0, 2)]},
        positives={Split.TRAIN: [[2, 4], [7], [5, 6]]},
    ).write(tmp_path_factory.mktemp("hand"))


def expect(batch: RankBatch, **expected: object) -> None:
    for name, value in expected.items():
        tensor = getattr(batch, name)
        assert tensor.dtype == torch.int64, name
        assert tensor.tolist() == value, name


def test_whole_evaluation_batch(dataset: Dataset) -> None:
    """History lengths 3 and 2: the latest videos, the latest entries, each entry whole."""
    data = RankData(dataset, Task.REC, Split.TRAIN, max_videos=3, max_entries=2)
    expect(
        data.evaluation(np.arange(4)),
        rows=[0, 1, 2, 3],
        videos=[5, 1, 2, 4],
        video_ids=[
            [2, 3, 4],  # the latest three of 1 2 3 4
            [2, 4, 0],
            [1, 0, 0],
            [0, 0, 0],  # no video history
        ],
        video_comments=[
            [5, 7, 0],  # the most liked; video 4 has none
            [5, 0, 0],
            [1, 0, 0],
            [0, 0, 0],
        ],
        entry_videos=[
            [2, 1],  # entries 1 and 2 of 0 1 2; the event of entry 3 lies after the cut
            [0, 0],  # no comment history
            [0, 0],
            [2, 3],
        ],
        comments=[5, 3, 4, 6, 7],
        comment_entries=[0, 1, 1, 6, 7],
        candidates=[[], [], [], []],
        negatives=[],
    )


def test_an_entry_that_the_cut_goes_through_shows_what_lies_before(dataset: Dataset) -> None:
    """Sample 0 of CommRank sees four comment events: of entry 2, under video 1, only comment 3."""
    data = RankData(dataset, Task.COMM_RANK, Split.TRAIN, max_videos=50, max_entries=50)
    batch = data.evaluation(np.arange(3))
    expect(
        batch,
        videos=[1, 3, 2],
        video_ids=[[1, 2, 3, 4, 5], [0, 0, 0, 0, 0], [2, 4, 1, 0, 0]],
        entry_videos=[[1, 2, 1], [2, 0, 0], [0, 0, 0]],
        comments=[1, 2, 5, 3, 6],
        comment_entries=[0, 0, 1, 2, 3],
    )


def test_batches_without_any_history_have_one_empty_step(dataset: Dataset) -> None:
    data = RankData(dataset, Task.REC, Split.TRAIN)
    batch = data.evaluation(np.array([3]))
    assert batch.video_ids.tolist() == [[0]]
    batch = data.evaluation(np.array([1]))
    assert batch.entry_videos.tolist() == [[0]]
    assert batch.comments.tolist() == []


def test_rows_do_not_depend_on_their_neighbours(dataset: Dataset) -> None:
    """A sample draws the same in any batch: positives, negatives and shown comments."""
    data = RankData(dataset, Task.COMM_RANK, Split.TRAIN)
    together = data.training(np.arange(3), (7, 1), 3)
    for row in range(3):
        alone = data.training(np.array([row]), (7, 1), 3)
        assert alone.candidates.tolist() == together.candidates[[row]].tolist()
        width = alone.video_comments.shape[1]
        assert alone.video_comments.tolist() == together.video_comments[[row], :width].tolist()
    again = data.training(np.arange(3), (7, 1), 3)
    assert all(torch.equal(getattr(again, name), getattr(together, name)) for name in vars(again))


def test_training_shows_one_of_the_three_most_liked(dataset: Dataset) -> None:
    data = RankData(dataset, Task.REC, Split.TRAIN)
    shown = [data.training(np.array([0]), (1, epoch)).video_comments[0].tolist() for epoch in range(300)]
    of_first = np.bincount([row[0] for row in shown], minlength=8)
    assert of_first[[1, 2, 3]].min() > 60  # uniform would be 100 each
    assert of_first[[4, 5, 6, 7, 0]].sum() == 0  # the fourth is never shown
    assert {row[1] for row in shown} == {5, 6}
    assert {row[3] for row in shown} == {0}


def test_rec_targets_and_shared_negatives(dataset: Dataset) -> None:
    data = RankData(dataset, Task.REC, Split.TRAIN)
    full = data.training(np.arange(4), (1, 0))
    assert full.candidates.tolist() == [[5], [1], [2], [4]]
    assert len(full.negatives) == 0
    sampled = data.training(np.arange(4), (1, 0), 200)
    assert set(sampled.negatives.tolist()) == {1, 2, 3, 4, 5}


def test_comment_negatives_come_from_the_video_then_from_everywhere(dataset: Dataset) -> None:
    data = RankData(dataset, Task.COMM_RANK, Split.TRAIN)
    for epoch in range(50):
        first, second, third = data.training(np.arange(3), (1, epoch), 4).candidates.tolist()
        assert first[0] in (2, 4)
        assert set(first[1:3]) == {1, 3}  # the video's two others come first
        assert set(first[3:]) <= {5, 6, 7}
        assert second[0] == 7
        assert set(second[1:]) <= set(range(1, 7))  # the video has no other comment
        assert third[0] in (5, 6)
        assert set(third[1:]) <= {1, 2, 3, 4, 7}
        for row in (first, second, third):
            assert len(set(row)) == 5  # all different


def test_comment_negatives_of_the_video_alone(dataset: Dataset) -> None:
    data = RankData(dataset, Task.COMM_RANK, Split.TRAIN, fill_up=False)
    first, second, third = data.training(np.arange(3), (1, 0), 4).candidates.tolist()
    assert set(first[1:3]) == {1, 3}
    assert first[3:] == [0, 0]
    assert (second[0], second[1:]) == (7, [0, 0, 0, 0])
    assert third[0] in (5, 6)
    assert third[1:] == [0, 0, 0, 0]


def test_too_few_comments_anywhere_leave_padding() -> None:
    """Three comments in the world, two of them positive: one negative and padding."""
    rows = np.array([0])
    one = np.array([0]), np.array([2])
    positives = Spans(*one, np.array([1, 2]))
    own = Spans(*one, np.array([1, 2]))
    drawn = comment_negatives((1, 2, 3), rows, positives, own, 4, 3)
    assert drawn.tolist() == [[3, 0, 0, 0]]


def test_a_video_with_many_comments_gives_uniform_distinct_negatives() -> None:
    total, rows = 1000, np.arange(400)
    own = Spans(np.zeros(400, dtype=np.int64), np.full(400, total), np.arange(1, total + 1))
    positives = Spans(rows, np.ones(400, dtype=np.int64), rows % 10 + 1)
    drawn = comment_negatives((5, 0, 2), rows, positives, own, 19, total)
    assert all(len(set(row)) == 19 for row in drawn.tolist())
    assert not (drawn == (rows % 10 + 1)[:, None]).any()
    assert np.bincount(drawn.ravel() // 100, minlength=10)[:10].min() > 600  # 760 a tenth expected


def test_a_video_without_comments(dataset: Dataset) -> None:
    drawn = comment_negatives(
        (1, 1, 1),
        np.array([3]),
        Spans(np.array([0]), np.array([1]), np.array([2])),
        Spans(np.array([7]), np.array([0]), np.array(VIDEO_OF)),
        3,
        7,
    )
    assert 2 not in drawn
    assert (drawn > 0).all()


def test_draws_are_uniform_and_independent() -> None:
    numbers = uniforms((1, 2, 3), np.arange(2000), 8)
    assert abs(numbers.mean() - 0.5) < 0.01
    assert np.abs(np.corrcoef(numbers.T) - np.eye(8)).max() < 0.1
    other = uniforms((1, 3, 3), np.arange(2000), 8)
    assert abs(np.corrcoef(numbers.ravel(), other.ravel())[0, 1]) < 0.03
    assert np.array_equal(uniforms((1, 2, 3), np.array([5]), 8)[0], numbers[5])
    counts = np.bincount(integers((1,), np.arange(5000), 4, 7).ravel())
    assert len(counts) == 7
    assert counts.min() > 2600  # 2857 expected
    assert integers((1,), np.arange(3), 2, 0).tolist() == [[0, 0]] * 3


def test_without_comments_the_videos_are_the_same(dataset: Dataset) -> None:
    """For models that read no comments: nothing of them is built."""
    rows = np.arange(2)
    whole, bare = (
        RankData(dataset, Task.REC, Split.TRAIN, with_comments=flag).training(rows, (1, 0), 4)
        for flag in (True, False)
    )
    for name in ("rows", "videos", "video_ids", "candidates", "negatives"):
        assert torch.equal(getattr(whole, name), getattr(bare, name))
    assert whole.comments.numel() and whole.video_comments.any()
    assert bare.comments.numel() == bare.comment_entries.numel() == 0
    assert bare.entry_videos.tolist() == [[0], [0]] and not bare.video_comments.any()


def test_batch_moves_to_a_device(dataset: Dataset) -> None:
    batch = RankData(dataset, Task.REC, Split.TRAIN).training(np.arange(2), (1, 0), 4)
    moved = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in vars(moved).values()} == {"meta"}
    assert len(moved) == 2
