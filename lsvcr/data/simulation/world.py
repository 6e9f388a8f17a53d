"""Planting videos and comments: topics, tones, popularity, upload times. No text yet."""

from dataclasses import dataclass

import numpy as np

from lsvcr.data.simulation.presets import BACKLOG_DAYS, DAYS, Preset, Shape

NONE = -1
"""No second topic, no misleading topic, no mention."""


@dataclass(frozen=True)
class Videos:
    """One row a video. `upload_hour` counts from the first hour of the log, negative before it."""

    raw_id: np.ndarray
    author: np.ndarray
    topic: np.ndarray
    second: np.ndarray
    decoy: np.ndarray
    tone: np.ndarray
    popularity: np.ndarray
    rank_share: np.ndarray
    upload_hour: np.ndarray
    duration_ms: np.ndarray

    def __len__(self) -> int:
        return len(self.raw_id)


@dataclass(frozen=True)
class Comments:
    """One row a comment, sorted by video. `mention` is the topic it names, or NONE."""

    raw_id: np.ndarray
    video: np.ndarray
    offsets: np.ndarray
    tone: np.ndarray
    mention: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.raw_id)


def draw_from_rows(rng: np.random.Generator, weights: np.ndarray) -> np.ndarray:
    """One column index a row of the (N, K) weights."""
    edges = np.cumsum(weights, axis=1)
    points = rng.random(len(weights)) * edges[:, -1]
    return np.minimum((edges <= points[:, None]).sum(axis=1), weights.shape[1] - 1)


def raw_ids(rng: np.random.Generator, count: int, base: int) -> np.ndarray:
    """Distinct int64 identifiers in no particular order."""
    return base + rng.permutation(count).astype(np.int64) * 7 + 3


def plant_videos(rng: np.random.Generator, preset: Preset, related: np.ndarray, n_tones: int) -> Videos:
    """Draw every video's hidden properties; `related` is the (K, K) map of neighbouring topics."""
    shape, count, n_topics = preset.shape, preset.videos, len(related)
    topic_share = rng.lognormal(0.0, 0.4, n_topics)
    tone_share = rng.lognormal(0.0, 0.35, (n_topics, n_tones))
    topic = rng.choice(n_topics, count, p=topic_share / topic_share.sum())
    tone = draw_from_rows(rng, tone_share[topic])
    second = np.where(rng.random(count) < shape.second_topic_share, draw_from_rows(rng, related[topic]), NONE)
    decoy = np.where(
        rng.random(count) < 0.4, draw_from_rows(rng, related[topic]), rng.integers(0, n_topics, count)
    )
    misleads = (rng.random(count) < shape.decoy_share) & (decoy != topic) & (decoy != second)
    order = rng.permutation(count)
    hours = np.where(
        rng.random(count) < shape.new_share,
        rng.integers(0, DAYS * 24 - 12, count),
        -rng.integers(1, BACKLOG_DAYS * 24, count),
    )
    return Videos(
        raw_id=raw_ids(rng, count, 30_000_000),
        author=raw_ids(rng, max(4, count // 5), 9_000_000)[rng.integers(0, max(4, count // 5), count)],
        topic=topic,
        second=second,
        decoy=np.where(misleads, decoy, NONE),
        tone=tone,
        popularity=(order + 1.0 + shape.popularity_shift) ** -shape.popularity_slope,
        rank_share=1.0 - order / count,
        upload_hour=hours,
        duration_ms=np.round(rng.lognormal(10.2, 0.7, count).clip(5_000, 600_000)),
    )


def comment_counts(rng: np.random.Generator, preset: Preset, popularity: np.ndarray) -> np.ndarray:
    """Comments of each video: few for the coldest, many for the best known, `preset.comments` in total or nearly."""
    shape = preset.shape
    base = min(shape.comments_least, preset.comments / len(popularity) / 2)
    shares = popularity**shape.comments_spread * rng.lognormal(0.0, 0.3, len(popularity))
    low, high = 0.0, shape.comments_most / shares.min()
    for _ in range(60):
        scale = (low + high) / 2
        total = np.minimum(base + scale * shares, shape.comments_most).sum()
        low, high = (scale, high) if total < preset.comments else (low, scale)
    wanted = np.minimum(base + low * shares, shape.comments_most)
    return (np.floor(wanted) + (rng.random(len(wanted)) < wanted % 1)).astype(np.int64)


def plant_comments(
    rng: np.random.Generator, preset: Preset, videos: Videos, related: np.ndarray, n_tones: int
) -> Comments:
    """Draw every comment's video, tone, mentioned topic and like weight."""
    shape = preset.shape
    counts = comment_counts(rng, preset, videos.popularity)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    video = np.repeat(np.arange(len(videos)), counts)
    total = len(video)
    follows = rng.random(total) < shape.comment_tone_follows
    tone = np.where(follows, videos.tone[video], rng.integers(0, n_tones, total))
    kind = rng.random(total)
    own = np.where(
        (videos.second[video] != NONE) & (rng.random(total) < 0.3), videos.second[video], videos.topic[video]
    )
    other = draw_from_rows(rng, related[videos.topic[video]])
    named = np.where(kind < shape.mention_other_share + shape.mention_none_share, NONE, own)
    mention = np.where(kind < shape.mention_other_share, other, named)
    place = np.arange(total) - offsets[video]
    return Comments(
        raw_id=raw_ids(rng, total, 500_000_000),
        video=video,
        offsets=offsets,
        tone=tone,
        mention=mention,
        weight=(place + 1.0) ** -shape.comment_slope,
    )


def video_entries(shape: Shape, videos: Videos) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(item, topic, weight) of every video-topic pair; a second topic takes its share of the weight.

    Freshness is part of the weight: exp(-(now - upload) / decay) has `now` in common for all videos.
    """
    fresh = np.exp(videos.upload_hour / 24.0 / shape.freshness_days)
    weight = videos.popularity * fresh
    both = np.flatnonzero(videos.second != NONE)
    main_share = np.where(videos.second != NONE, 1.0 - shape.second_topic_weight, 1.0)
    item = np.concatenate((np.arange(len(videos)), both))
    topic = np.concatenate((videos.topic, videos.second[both]))
    return item, topic, np.concatenate((weight * main_share, weight[both] * shape.second_topic_weight))


def comment_entries(
    shape: Shape, videos: Videos, comments: Comments
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(item, topic, weight) of every comment-topic pair.

    Most of a comment's weight lies on the topic it names, the rest on its video's topic; how often a
    video's comments are seen grows with the video's own weight.
    """
    fresh = np.exp(videos.upload_hour / 24.0 / shape.freshness_days)
    seen = (videos.popularity**shape.comment_reach * fresh)[comments.video]
    weight = seen * comments.weight
    home = videos.topic[comments.video]
    target = np.where(comments.mention == NONE, home, comments.mention)
    every = np.arange(len(comments))
    spill = shape.comment_topic_spill
    return (
        np.concatenate((every, every)),
        np.concatenate((target, home)),
        np.concatenate((weight * (1.0 - spill), weight * spill)),
    )
