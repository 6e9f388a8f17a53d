"""What people like, and when: steady topics, a passing obsession, and a tone, each in phases.

The comments a person likes run ahead of the videos they like: a new obsession or tone starts
earlier in `comment_*` than in `video_*`.
"""

from dataclasses import dataclass, fields

import numpy as np

from lsvcr.data.simulation.presets import DAY_MS, DAYS, START_MS, Shape
from lsvcr.data.simulation.world import NONE, draw_from_rows

NEVER = np.iinfo(np.int64).max
LONG_TASTES = 3


@dataclass(frozen=True)
class Tastes:
    """One row a user; phases are columns, in time order.

    Attributes:
        long_topics: (U, 3) int, NONE where there are fewer. long_weights: (U, 3), rows sum to 1.
        obsessions: (U, P) int topics; tones: (U, Q) int; second_tone: (U,) int.
        video_topic_start, comment_topic_start: (U, P) int64 ms, NEVER where there is no such phase.
        video_tone_start, comment_tone_start: (U, Q) int64 ms.
        window: (U, 2) int64 ms, first and last instant of the user's activity.
    """

    long_topics: np.ndarray
    long_weights: np.ndarray
    obsessions: np.ndarray
    tones: np.ndarray
    second_tone: np.ndarray
    video_topic_start: np.ndarray
    comment_topic_start: np.ndarray
    video_tone_start: np.ndarray
    comment_tone_start: np.ndarray
    window: np.ndarray

    def __len__(self) -> int:
        return len(self.second_tone)


def join_tastes(parts: list[Tastes]) -> Tastes:
    """Rows of all parts, in order."""
    return Tastes(
        **{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Tastes)}
    )


def _phase_starts(
    rng: np.random.Generator, window: np.ndarray, count: np.ndarray, columns: int, lead: float
) -> tuple[np.ndarray, np.ndarray]:
    """Starts of each phase for videos and, earlier by about `lead` phases, for comments."""
    users = len(window)
    step = np.arange(1, columns)
    jitter = rng.uniform(-0.3, 0.3, (users, columns - 1))
    at = (step + jitter) / count[:, None]
    ahead = lead * rng.uniform(0.7, 1.3, (users, columns - 1)) / count[:, None]
    length = (window[:, 1] - window[:, 0])[:, None]
    real = step < count[:, None]
    starts = []
    for progress in (at, at - ahead):
        later = np.where(real, window[:, :1] + (progress * length).astype(np.int64), NEVER)
        starts.append(np.concatenate((np.zeros((users, 1), np.int64), later), axis=1))
    return starts[0], starts[1]


def _long_topics(
    rng: np.random.Generator, shape: Shape, users: int, topic_share: np.ndarray, related: np.ndarray
) -> np.ndarray:
    """(U, 3) distinct topics a user; the later ones are often neighbours of the first."""
    first = draw_from_rows(rng, np.broadcast_to(topic_share, (users, len(topic_share))))
    near = rng.random(users) < shape.neighbour_taste_share
    pool = np.where(near[:, None], related[first], topic_share / topic_share.sum())
    keys = rng.exponential(1.0, pool.shape) / np.maximum(pool, 1e-12)
    keys[np.arange(users), first] = 0.0
    return np.argsort(keys, axis=1)[:, :LONG_TASTES]


def draw_tastes(
    rng: np.random.Generator,
    shape: Shape,
    users: int,
    topic_share: np.ndarray,
    related: np.ndarray,
    n_tones: int,
) -> Tastes:
    """Tastes of a block of users; `topic_share` (K,) is how common a topic is."""
    n_topics = len(topic_share)
    days = np.stack((rng.uniform(0, 8, users), rng.uniform(DAYS - 5, DAYS - 0.1, users)), axis=1)
    window = START_MS + (days * DAY_MS).astype(np.int64)
    long_topics = _long_topics(rng, shape, users, topic_share, related)
    held = rng.integers(1, LONG_TASTES + 1, users)
    present = np.arange(LONG_TASTES) < held[:, None]
    weights = np.where(present, rng.uniform(0.5, 1.5, (users, LONG_TASTES)), 0.0)

    phases = shape.phase_count[1]
    obsessions = np.empty((users, phases), np.int64)
    obsessions[:, 0] = draw_from_rows(rng, np.broadcast_to(topic_share, (users, n_topics)))
    for step in range(1, phases):
        anywhere = rng.choice(n_topics, users, p=topic_share / topic_share.sum())
        from_long = rng.random(users) < 0.3
        origin = np.where(from_long, long_topics[:, 0], obsessions[:, step - 1])
        near = draw_from_rows(rng, related[origin])
        obsessions[:, step] = np.where(rng.random(users) < shape.neighbour_step_share, near, anywhere)

    tone_phases = shape.tone_phase_count[1]
    tones = np.argsort(rng.random((users, n_tones)), axis=1)
    count = rng.integers(shape.phase_count[0], phases + 1, users)
    tone_count = rng.integers(shape.tone_phase_count[0], tone_phases + 1, users)
    video_topic, comment_topic = _phase_starts(rng, window, count, phases, shape.lead)
    video_tone, comment_tone = _phase_starts(rng, window, tone_count, tone_phases, shape.lead)
    return Tastes(
        long_topics=np.where(present, long_topics, NONE),
        long_weights=weights / weights.sum(axis=1, keepdims=True),
        obsessions=obsessions,
        tones=tones[:, :tone_phases],
        second_tone=tones[:, tone_phases],
        video_topic_start=video_topic,
        comment_topic_start=comment_topic,
        video_tone_start=video_tone,
        comment_tone_start=comment_tone,
        window=window,
    )


def taste_at(
    tastes: Tastes,
    shape: Shape,
    related: np.ndarray,
    n_tones: int,
    user: np.ndarray,
    time: np.ndarray,
    kind: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Topic taste (E, K) and tone taste (E, T) of user rows at times (E,), rows sum to 1.

    Args:
        kind: "video" or "comment", whose phases run ahead.
    """
    events, rows = len(user), np.arange(len(user))
    topic_phase = (getattr(tastes, f"{kind}_topic_start")[user] <= time[:, None]).sum(axis=1) - 1
    tone_phase = (getattr(tastes, f"{kind}_tone_start")[user] <= time[:, None]).sum(axis=1) - 1
    topic = np.zeros((events, len(related)))
    for slot in range(LONG_TASTES):
        known = tastes.long_topics[user, slot] != NONE
        share = (1.0 - shape.obsession_weight) * tastes.long_weights[user, slot]
        np.add.at(topic, (rows[known], tastes.long_topics[user[known], slot]), share[known])
    topic[rows, tastes.obsessions[user, topic_phase]] += shape.obsession_weight
    sharp = 1.0 - shape.topic_smear - shape.topic_floor
    topic = sharp * topic + shape.topic_smear * (topic @ related) + shape.topic_floor / len(related)
    tone = np.full((events, n_tones), shape.other_tone)
    tone[rows, tastes.second_tone[user]] = shape.second_tone
    tone[rows, tastes.tones[user, tone_phase]] = 1.0
    return topic, tone / tone.sum(axis=1, keepdims=True)
