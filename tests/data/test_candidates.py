import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsvcr.data import candidates
from lsvcr.data.candidates import comm_rank_candidates, rec_candidates
from lsvcr.data.store import SAMPLE_DTYPE, Csr, Samples
from lsvcr.schema import Split


def rec_samples(targets) -> Samples:
    rows = np.zeros(len(targets), SAMPLE_DTYPE)
    rows["video"] = targets
    return Samples(rows)


def csr(rows: list[list[int]]) -> Csr:
    return Csr(np.cumsum([0, *map(len, rows)]), np.array([item for row in rows for item in row], np.int32))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(2, 40), st.integers(0, 5), st.data())
def test_rec_rows_hold_the_target_once_and_distinct_videos(n_videos, n, seed, data):
    targets = data.draw(st.lists(st.integers(1, n_videos), max_size=20))
    found = rec_candidates(rec_samples(targets), n_videos, n, seed, Split.TEST)
    assert found.shape == (len(targets), min(n, n_videos)) and found.dtype == np.int32
    for target, row in zip(targets, found, strict=True):
        assert len(set(row.tolist())) == len(row)
        assert row.min() >= 1 and row.max() <= n_videos
        assert (row == target).sum() == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(2, 12), st.data())
def test_comment_rows_hold_each_positive_once_and_comments_of_the_video(sizes, n, data):
    starts = np.cumsum([0, *sizes])
    lists = [list(range(1 + start, 1 + start + size)) for start, size in zip(starts, sizes, strict=False)]
    video_comments = csr([[], *lists])
    videos = data.draw(st.lists(st.integers(1, len(sizes)), max_size=12))
    positives = [data.draw(st.lists(st.sampled_from(lists[v - 1]), min_size=1, unique=True)) for v in videos]
    rows = np.zeros(len(videos), SAMPLE_DTYPE)
    rows["video"] = videos
    found = comm_rank_candidates(Samples(rows, csr(positives)), video_comments, n, 3, Split.VAL)
    assert len(found.offsets) == len(videos) + 1 and found.items.dtype == np.int32
    for i, (video, own) in enumerate(zip(videos, positives, strict=True)):
        row = found.row(i).tolist()
        assert len(row) == max(min(n, len(lists[video - 1])), len(own))
        assert len(set(row)) == len(row)
        assert set(own) <= set(row) <= set(lists[video - 1])


def test_more_candidates_than_any_list_has_are_all_there_are():
    samples, video_comments = long_lists()
    expected = comm_rank_candidates(samples, video_comments, 40, 3, Split.VAL)
    found = comm_rank_candidates(samples, video_comments, 10**15, 3, Split.VAL)
    assert np.array_equal(found.offsets, expected.offsets) and np.array_equal(found.items, expected.items)


def long_lists() -> tuple[Samples, Csr]:
    """300 rows over a list of 40 comments and one of 12, two positives each."""
    video_comments = csr([[], list(range(1, 41)), list(range(41, 53))])
    rows = np.zeros(300, SAMPLE_DTYPE)
    rows["video"] = 1 + np.arange(300) % 2
    positives = [[3, 40] if video == 1 else [41, 45] for video in rows["video"]]
    return Samples(rows, csr(positives)), video_comments


@pytest.mark.parametrize("block", [1, 7, 299])
def test_rows_do_not_depend_on_how_the_work_is_cut(monkeypatch: pytest.MonkeyPatch, block: int):
    samples, video_comments = long_lists()
    rec = rec_candidates(samples, 90, 20, 1, Split.TEST)
    rank = comm_rank_candidates(samples, video_comments, 15, 1, Split.TEST)
    monkeypatch.setattr(candidates, "_ROWS", block)
    assert (rec_candidates(samples, 90, 20, 1, Split.TEST) == rec).all()
    again = comm_rank_candidates(samples, video_comments, 15, 1, Split.TEST)
    assert (again.items == rank.items).all() and (again.offsets == rank.offsets).all()


def test_seed_and_split_give_other_rows():
    samples = rec_samples([5] * 50)
    first = rec_candidates(samples, 1000, 10, 1, Split.TEST)
    assert (rec_candidates(samples, 1000, 10, 1, Split.TEST) == first).all()
    assert (rec_candidates(samples, 1000, 10, 2, Split.TEST) != first).any(axis=1).all()
    assert (rec_candidates(samples, 1000, 10, 1, Split.VAL) != first).any(axis=1).all()


def test_the_numbers_stay_what_they_were():
    """Golden rows: a change here makes every stored result incomparable."""
    found = rec_candidates(rec_samples([2, 7]), 20, 5, 2024, Split.TEST)
    assert found.tolist() == [[2, 7, 10, 20, 3], [16, 17, 14, 12, 7]]


def spread(counts: np.ndarray, expected: float) -> float:
    """Chi-square over its degrees of freedom, about 1 for fair draws."""
    return float(((counts - expected) ** 2 / expected).sum() / (len(counts) - 1))


@pytest.mark.parametrize("n_videos", [25, 400])
def test_negatives_are_uniform_and_the_target_stands_anywhere(n_videos: int):
    rows, width = 20_000, 11
    found = rec_candidates(rec_samples([n_videos // 2] * rows), n_videos, width, 0, Split.TEST)
    counts = np.bincount(found.reshape(-1), minlength=n_videos + 1)
    others = np.delete(counts[1:], n_videos // 2 - 1)
    assert spread(others, rows * (width - 1) / (n_videos - 1)) < 1.6
    places = np.bincount(np.nonzero(found == n_videos // 2)[1], minlength=width)
    assert spread(places, rows / width) < 3


def test_drawn_comments_are_uniform_and_positives_stand_anywhere():
    n, size, rows = 8, 30, 20_000
    video_comments = csr([[], list(range(1, size + 1))])
    sample_rows = np.zeros(rows, SAMPLE_DTYPE)
    sample_rows["video"] = 1
    found = comm_rank_candidates(Samples(sample_rows, csr([[1, 9]] * rows)), video_comments, n, 5, Split.TEST)
    table = found.items.reshape(rows, n)
    counts = np.bincount(table.reshape(-1), minlength=size + 1)[1:]
    assert counts[0] == counts[8] == rows
    assert spread(np.delete(counts, [0, 8]), rows * (n - 2) / (size - 2)) < 2
    for positive in (1, 9):
        assert spread(np.bincount(np.nonzero(table == positive)[1], minlength=n), rows / n) < 3
