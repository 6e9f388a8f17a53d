"""Text augmentation: which comments each branch sees, and how often they differ."""

from collections import Counter

import numpy as np
import pytest

from lsvcr.data.augment import augmented_entries, popular_comment, shown_comments, split_comments
from lsvcr.utils.seeding import generator


def test_half_of_the_histories_and_three_in_ten_of_their_entries() -> None:
    drawn = np.stack([augmented_entries(10, generator(3, n)) for n in range(4000)])
    touched = drawn.any(axis=1)
    # A history that takes part has none of ten augmented with probability 0.7^10 = 0.028.
    assert touched.mean() == pytest.approx(0.5 * (1 - 0.7**10), abs=0.03)
    assert drawn.mean() == pytest.approx(0.15, abs=0.01)


def test_the_draw_is_the_same_length_whether_a_history_takes_part_or_not() -> None:
    after = set()
    for seed in range(20):
        rng = generator(seed)
        augmented_entries(6, rng)
        after.add(
            rng.bit_generator.state["state"]["state"] != generator(seed).bit_generator.state["state"]["state"]
        )
    assert after == {True}


def test_popular_comment_is_one_of_the_top_three() -> None:
    popular = np.array([40, 41, 42, 43, 44])
    seen = Counter(popular_comment(popular, False, generator(n)) for n in range(3000))
    assert set(seen) == {(40, 40), (41, 41), (42, 42)}
    assert min(seen.values()) > 900


def test_augmented_branches_see_two_different_popular_comments() -> None:
    seen = Counter(popular_comment(np.array([40, 41, 42, 43]), True, generator(n)) for n in range(3000))
    assert set(seen) == {(a, b) for a in (40, 41, 42) for b in (40, 41, 42) if a != b}
    assert min(seen.values()) > 400


def test_popular_comment_of_a_video_with_few_or_none() -> None:
    assert popular_comment(np.array([], dtype=np.int32), True, generator(1)) == (0, 0)
    assert popular_comment(np.array([7]), True, generator(1)) == (7, 7)


def test_own_comments_are_mixed_with_as_many_popular_others_and_split() -> None:
    own, popular = [3, 50], np.array([1, 2, 3, 4, 5, 6])
    for number in range(200):
        llm, sr = split_comments(own, popular, generator(number))
        assert not set(llm) & set(sr)
        assert sorted(llm + sr) == [1, 2, 3, 50]  # the two most liked that are not the person's own
        assert len(llm) == len(sr) == 2
    sides = Counter(3 in split_comments(own, popular, generator(n))[0] for n in range(1000))
    assert sides[True] == pytest.approx(500, abs=70)


def test_split_where_there_are_too_few_others() -> None:
    llm, sr = split_comments([8], np.array([8]), generator(0))
    assert llm == sr == [8]
    for number in range(50):
        llm, sr = split_comments([8, 9, 10], np.array([8, 11]), generator(number))
        assert sorted(llm + sr) == [8, 9, 10, 11]
        assert llm
        assert sr


def test_shown_comments_keep_their_order() -> None:
    assert shown_comments([5, 6], 3, generator(0)) == [5, 6]
    seen = {tuple(shown_comments([9, 7, 5, 3], 3, generator(n))) for n in range(100)}
    assert seen == {(9, 7, 5), (9, 7, 3), (9, 5, 3), (7, 5, 3)}
