"""What a block of users does: likes, comment interactions, and impressions without a like."""

from dataclasses import dataclass

import numpy as np

from lsvcr.data.simulation.presets import DAY_MS, HOUR_MS, HOURS, START_MS, Preset, Shape
from lsvcr.data.simulation.sampler import BucketSampler
from lsvcr.data.simulation.tastes import Tastes, taste_at
from lsvcr.data.simulation.world import NONE, Comments, Videos

HOUR_WEIGHTS = np.array([3, 2, 1, 1, 1, 2, 4, 6, 6, 5, 5, 6, 8, 7, 6, 6, 6, 8, 10, 12, 14, 14, 11, 6], float)
ROUNDS = 30
SECOND_MS = 1_000


@dataclass(frozen=True)
class Events:
    """Rows (user of the block, item, time in ms), sorted by user and time."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> "Events":
        """The chosen rows, sorted again."""
        user, item, time = self.user[rows], self.item[rows], self.time[rows]
        order = np.lexsort((time, user))
        return Events(user[order], item[order], time[order])


@dataclass(frozen=True)
class Samplers:
    """The world as the behaviour sees it."""

    preset: Preset
    videos: Videos
    comments: Comments
    related: np.ndarray
    n_tones: int
    by_video: BucketSampler
    by_comment: BucketSampler


def hour_of(time: np.ndarray) -> np.ndarray:
    """Hours since the start of the log, inside it."""
    return np.clip((time - START_MS) // HOUR_MS, 0, HOURS - 1)


def event_counts(rng: np.random.Generator, users: int, mean: float, least: int) -> np.ndarray:
    """Long-tailed counts with about the given mean."""
    spread = 0.55
    wanted = rng.lognormal(np.log(max(mean, 1.0)) - spread**2 / 2, spread, users)
    return np.maximum(np.round(wanted), least).astype(np.int64)


def event_times(
    rng: np.random.Generator, tastes: Tastes, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(user, time) of every event, sorted, times of a user distinct and mostly in the evening."""
    user = np.repeat(np.arange(len(counts)), counts)
    low, high = tastes.window[user, 0], tastes.window[user, 1]
    day = (low + rng.random(len(user)) * (high - low)).astype(np.int64) // DAY_MS
    hour = rng.choice(24, len(user), p=HOUR_WEIGHTS / HOUR_WEIGHTS.sum())
    time = day * DAY_MS + hour * HOUR_MS + rng.integers(0, HOUR_MS, len(user))
    time = np.clip(time, low, high)
    order = np.lexsort((time, user))
    user, time = user[order], time[order]
    place = np.arange(len(user)) - np.concatenate(([0], np.cumsum(counts)))[user]
    return user, time + place


def _repeats(user: np.ndarray, item: np.ndarray, n_items: int) -> np.ndarray:
    """Rows whose (user, item) stands in an earlier row already."""
    _, first = np.unique(user * n_items + item, return_index=True)
    again = np.ones(len(user), bool)
    again[first] = False
    return np.flatnonzero(again)


def draw_likes(rng: np.random.Generator, world: Samplers, tastes: Tastes) -> Events:
    """Liked videos; a user likes a video at most once."""
    preset = world.preset
    user, time = event_times(rng, tastes, event_counts(rng, len(tastes), preset.likes, 5))
    hour = hour_of(time)
    item = np.full(len(user), -1, np.int64)
    rows = np.arange(len(user))
    for _ in range(ROUNDS):
        for part in np.array_split(rows, max(1, len(rows) // 50_000)):
            topic, tone = taste_at(
                tastes, preset.shape, world.related, world.n_tones, user[part], time[part], "video"
            )
            item[part] = world.by_video.draw(rng, hour[part], topic, tone)
        rows = _repeats(user, item, len(world.videos))
        if len(rows) == 0:
            break
    kept = np.setdiff1d(np.arange(len(user)), rows)
    return Events(user[kept], item[kept], time[kept])


def _liked_at(likes: Events, user: np.ndarray, video: np.ndarray, n_videos: int) -> np.ndarray:
    """Time at which the user liked the video, -1 if never."""
    keys = likes.user * n_videos + likes.item
    order = np.argsort(keys)
    wanted = user * n_videos + video
    place = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
    return np.where(keys[order][place] == wanted, likes.time[order][place], -1)


def _free_entries(rng: np.random.Generator, world: Samplers, tastes: Tastes, likes: Events) -> Events:
    """First comment of each entry that taste alone brings; never under a video liked only later."""
    preset, n_videos = world.preset, len(world.videos)
    mean = preset.entries * (1.0 - preset.shape.attached_share)
    user, time = event_times(rng, tastes, event_counts(rng, len(tastes), mean, 1))
    hour = hour_of(time)
    item = np.full(len(user), -1, np.int64)
    rows = np.arange(len(user))
    for _ in range(ROUNDS):
        for part in np.array_split(rows, max(1, len(rows) // 50_000)):
            topic, tone = taste_at(
                tastes, preset.shape, world.related, world.n_tones, user[part], time[part], "comment"
            )
            item[part] = world.by_comment.draw(rng, hour[part], topic, tone)
        video = world.comments.video[item]
        early = np.flatnonzero(_liked_at(likes, user, video, n_videos) >= time - 60 * SECOND_MS)
        rows = np.union1d(_repeats(user, video, n_videos), early)
        if len(rows) == 0:
            break
    kept = np.setdiff1d(np.arange(len(user)), rows)
    return Events(user[kept], item[kept], time[kept])


def _attached_entries(rng: np.random.Generator, world: Samplers, tastes: Tastes, likes: Events) -> Events:
    """Entries under a video right after it was liked; `item` is that video, the comment is open."""
    shape = world.preset.shape
    chance = shape.attached_share * world.preset.entries / world.preset.likes
    rows = np.flatnonzero(rng.random(len(likes)) < chance)
    later = rng.integers(20, 300, len(rows)) * SECOND_MS
    return Events(likes.user[rows], likes.item[rows], likes.time[rows] + later)


def comment_weights(
    videos: Videos,
    comments: Comments,
    shape: Shape,
    comment: np.ndarray,
    topic: np.ndarray,
    tone: np.ndarray,
    row: np.ndarray,
) -> np.ndarray:
    """Weight of comments (N,) under the tastes in `row` (N,) of topic (E, K) and tone (E, T)."""
    home = videos.topic[comments.video[comment]]
    target = np.where(comments.mention[comment] == NONE, home, comments.mention[comment])
    spill = shape.comment_topic_spill
    fit = (1.0 - spill) * topic[row, target] + spill * topic[row, home]
    return comments.weight[comment] * fit * tone[row, comments.tone[comment]]


def _fill_entries(
    rng: np.random.Generator, world: Samplers, tastes: Tastes, entries: Events, first: np.ndarray
) -> Events:
    """All liked comments of each entry: `first` (E,) if given (>= 0), then the best of the same video."""
    shape, comments = world.preset.shape, world.comments
    topic, tone = taste_at(tastes, shape, world.related, world.n_tones, entries.user, entries.time, "comment")
    counts = np.diff(comments.offsets)[entries.item]
    row = np.repeat(np.arange(len(entries)), counts)
    start = np.concatenate(([0], np.cumsum(counts)))
    comment = comments.offsets[entries.item[row]] + np.arange(len(row)) - start[row]
    weight = comment_weights(world.videos, comments, shape, comment, topic, tone, row)
    rank_key = np.log(weight) + rng.gumbel(size=len(row))
    rank_key[comment == first[row]] = np.inf
    order = np.lexsort((-rank_key, row))
    place = np.arange(len(row)) - start[row]
    wanted = 1 + rng.choice(3, len(entries), p=shape.comments_of_entry)
    kept = order[place < wanted[row]]
    place = place[place < wanted[row]]
    gap = rng.integers(4, 40, len(kept)) + 45 * place
    return Events(entries.user[row[kept]], comment[kept], entries.time[row[kept]] + gap * SECOND_MS)


def draw_comment_likes(rng: np.random.Generator, world: Samplers, tastes: Tastes, likes: Events) -> Events:
    """Liked comments: 1 to 3 of a video at nearby times, one visit a user and video."""
    n_videos = len(world.videos)
    attached = _attached_entries(rng, world, tastes, likes)
    free = _free_entries(rng, world, tastes, likes)
    visits = Events(
        np.concatenate((attached.user, free.user)),
        np.concatenate((attached.item, world.comments.video[free.item])),
        np.concatenate((attached.time, free.time)),
    )
    first = np.concatenate((np.full(len(attached), -1), free.item))
    again = _repeats(visits.user, visits.item, n_videos)
    empty = np.flatnonzero(np.diff(world.comments.offsets)[visits.item] == 0)
    kept = np.setdiff1d(np.arange(len(visits)), np.union1d(again, empty))
    visits = Events(visits.user[kept], visits.item[kept], visits.time[kept])
    chosen = _fill_entries(rng, world, tastes, visits, first[kept])
    return chosen.take(np.arange(len(chosen)))


def appeal(world: Samplers, tastes: Tastes, seen: Events) -> np.ndarray:
    """(E,) 0 to 1: how much of what the user wants most at that time, in topic and tone, is in the video.

    A second topic counts by its weight.
    """
    shape, videos = world.preset.shape, world.videos
    found = np.empty(len(seen))
    for part in np.array_split(np.arange(len(seen)), max(1, len(seen) // 50_000)):
        topic, tone = taste_at(
            tastes, shape, world.related, world.n_tones, seen.user[part], seen.time[part], "video"
        )
        row, video = np.arange(len(part)), seen.item[part]
        other = shape.second_topic_weight * (videos.second[video] != NONE)
        of_topic = (1 - other) * topic[row, videos.topic[video]] + other * topic[row, videos.second[video]]
        found[part] = of_topic / topic.max(axis=1) * tone[row, videos.tone[video]] / tone.max(axis=1)
    return found


def draw_unliked(
    rng: np.random.Generator, world: Samplers, tastes: Tastes, likes: Events, comment_likes: Events
) -> Events:
    """Videos seen but not liked: what the feed tried, and what was watched before a comment was liked."""
    preset, n_videos = world.preset, len(world.videos)
    mean = preset.likes * preset.unliked
    user, time = event_times(rng, tastes, event_counts(rng, len(tastes), mean, 1))
    item = np.empty(len(user), np.int64)
    for part in np.array_split(np.arange(len(user)), max(1, len(user) // 50_000)):
        topic, tone = taste_at(
            tastes, preset.shape, world.related, world.n_tones, user[part], time[part], "video"
        )
        blur_topic = 0.5 * topic + 0.5 / topic.shape[1]
        blur_tone = 0.4 * tone + 0.6 / tone.shape[1]
        item[part] = world.by_video.draw(rng, hour_of(time[part]), blur_topic, blur_tone)
    visited = world.comments.video[comment_likes.item]
    watched = comment_likes.time - rng.integers(10, 50, len(comment_likes)) * SECOND_MS
    user = np.concatenate((comment_likes.user, user))
    item = np.concatenate((visited, item))
    time = np.concatenate((watched, time))
    every = Events(user, item, time)
    fresh = _liked_at(likes, user, item, n_videos) < 0
    fresh[_repeats(user, item, n_videos)] = False
    return every.take(np.flatnonzero(fresh))
