"""Text augmentation of stage one: the LLM and the SR model see different comments of the same video.

What both views still share is the person's taste, so aligning them carries taste and not wording over
(LSVCR paper, section on preference alignment). Every function draws from the generator it is given.
"""

from collections.abc import Sequence

import numpy as np

HISTORY_PROBABILITY = 0.5
ENTRY_PROBABILITY = 0.3
POPULAR = 3
"""The comment shown with a video of the video history is one of its three most liked."""


def augmented_entries(entries: int, rng: np.random.Generator) -> np.ndarray:
    """Which entries of one history are augmented: (entries,) bool.

    A history takes part with probability 0.5, then each of its entries with probability 0.3 (published). The
    generator advances by the same amount either way.
    """
    takes_part = rng.random() < HISTORY_PROBABILITY
    return (rng.random(entries) < ENTRY_PROBABILITY) & takes_part


def popular_comment(popular: np.ndarray, augmented: bool, rng: np.random.Generator) -> tuple[int, int]:
    """The comment of one video-history entry for the LLM and for the SR model, in training.

    Args:
        popular: the video's comments, most liked first; only the first `POPULAR` are used.
        augmented: show the branches two different ones, where there are two.

    Returns:
        Two comment indices, equal unless augmented; (0, 0) for a video without comments.
    """
    choices = popular[:POPULAR]
    if len(choices) == 0:
        return 0, 0
    first = int(rng.integers(len(choices)))
    if not augmented or len(choices) == 1:
        return int(choices[first]), int(choices[first])
    other = (first + 1 + int(rng.integers(len(choices) - 1))) % len(choices)
    return int(choices[first]), int(choices[other])


def split_comments(
    own: Sequence[int] | np.ndarray, popular: np.ndarray, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """The comments of one augmented comment-history entry for the LLM and for the SR model.

    The person's comments are mixed with as many popular others of the video, as far as there are any, and the
    mixture is split at random into two halves.

    Args:
        own: the comments the person interacted with, at least one.
        popular: the video's comments, most liked first.

    Returns:
        Two disjoint, non-empty lists (the first has one more where the number is odd); a lone comment without
        any other goes to both.
    """
    mine = [int(comment) for comment in own]
    known = set(mine)
    # Among the first 2k comments at least k are not the person's own k.
    others = [int(comment) for comment in popular[: 2 * len(mine)] if int(comment) not in known]
    mixture = np.array(mine + others[: len(mine)])
    if len(mixture) == 1:
        return mine, mine
    mixture = mixture[rng.permutation(len(mixture))]
    half = (len(mixture) + 1) // 2
    return mixture[:half].tolist(), mixture[half:].tolist()


def shown_comments(comments: Sequence[int], limit: int, rng: np.random.Generator) -> list[int]:
    """At most `limit` of an entry's comments, sampled without replacement, in their original order."""
    if len(comments) <= limit:
        return list(comments)
    kept = np.sort(rng.choice(len(comments), size=limit, replace=False))
    return [comments[index] for index in kept]
