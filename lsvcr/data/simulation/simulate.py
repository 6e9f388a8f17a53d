"""`lsvcr simulate`: plant a world, let people act in it, write the raw files and the truth."""

from pathlib import Path
from typing import Any

import numpy as np

from lsvcr.data.simulation import tables
from lsvcr.data.simulation.behaviour import Samplers, appeal, draw_comment_likes, draw_likes, draw_unliked
from lsvcr.data.simulation.lexicon import Lexicon, load_lexicon
from lsvcr.data.simulation.presets import PRESETS, Preset
from lsvcr.data.simulation.sampler import BucketSampler
from lsvcr.data.simulation.tastes import Tastes, draw_tastes, join_tastes
from lsvcr.data.simulation.truth import TRUTH_DIR, save_truth
from lsvcr.data.simulation.world import (
    Comments,
    Videos,
    comment_entries,
    plant_comments,
    plant_videos,
    raw_ids,
    video_entries,
)
from lsvcr.data.simulation.writer import Writer
from lsvcr.settings import SimulateSettings
from lsvcr.settings.bounds import check_bounds
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import atomic_dir, check_replaceable, read_json, write_json
from lsvcr.utils.logging import get_logger

logger = get_logger(__name__)

SIMULATION_VERSION = 2
_ABOUT_FILE = "simulation.json"
_LIKES_FILE, _TOUCHES_FILE = "user_video_inter.csv", "user_comment_inter.csv"
_USERS_FILE, _VIDEOS_FILE, _COMMENTS_FILE = "user_features.csv", "video_features.csv", "comment_features.csv"
_FILES = (_ABOUT_FILE, _LIKES_FILE, _TOUCHES_FILE, _USERS_FILE, _VIDEOS_FILE, _COMMENTS_FILE, f"{TRUTH_DIR}/")
_VIDEOS, _COMMENTS, _IDS, _TASTES, _ACTS, _TITLES, _CONTENTS, _EXTRAS, _SHARES = range(9)


def simulate(settings: SimulateSettings) -> Path:
    """Write `user_video_inter.csv` and its four companions, `truth/` and `simulation.json`.

    Fully determined by (preset, language, seed); what people do does not depend on the language.

    Returns:
        The folder `settings.out`.

    Raises:
        UserError: no `out`, one that holds other files, an unknown preset or language, or a negative seed.
    """
    if not settings.out:
        raise UserError("simulate needs --out FOLDER, the folder that receives the raw files")
    if settings.preset not in PRESETS:
        raise UserError(f"unknown preset {settings.preset!r}: use {', '.join(PRESETS)}")
    if settings.language not in ("en", "zh"):
        raise UserError(f"unknown language {settings.language!r}: use en or zh")
    check_bounds(settings)
    check_replaceable(settings.out, "a simulated world", _FILES if _is_world(Path(settings.out)) else ())
    preset, seed = PRESETS[settings.preset], settings.seed
    lexicon = load_lexicon(settings.language)
    world = _plant(preset, lexicon, seed)
    users = raw_ids(np.random.default_rng((seed, _IDS)), preset.users, 1_000_000)
    with atomic_dir(settings.out) as folder:
        tastes, counts = _act(folder, world, users, seed)
        _describe(folder, world, lexicon, seed)
        save_truth(folder / TRUTH_DIR, world, tastes, users, lexicon)
        write_json(
            folder / _ABOUT_FILE,
            {
                "version": SIMULATION_VERSION,
                "preset": settings.preset,
                "language": settings.language,
                "seed": seed,
                "counts": counts | {"videos": len(world.videos), "comments": len(world.comments)},
                "settings": preset.as_dict(),
            },
        )
    logger.info(
        f"{settings.out}: {counts['users']:,} users, {len(world.videos):,} videos, {len(world.comments):,} comments, "
        f"{counts['likes']:,} likes, {counts['comment_likes']:,} comment interactions"
    )
    return Path(settings.out)


def _is_world(folder: Path) -> bool:
    """True when `folder` holds what this command wrote, in any version."""
    try:
        about = read_json(folder / _ABOUT_FILE)
    except UserError:
        return False
    return isinstance(about, dict) and {"version", "preset", "seed"} <= about.keys()


def _plant(preset: Preset, lexicon: Lexicon, seed: int) -> Samplers:
    related, n_tones = lexicon.related, len(lexicon.tone_names)
    videos = plant_videos(np.random.default_rng((seed, _VIDEOS)), preset, related, n_tones)
    comments = plant_comments(np.random.default_rng((seed, _COMMENTS)), preset, videos, related, n_tones)
    return make_samplers(preset, videos, comments, related, n_tones)


def make_samplers(
    preset: Preset, videos: Videos, comments: Comments, related: np.ndarray, n_tones: int
) -> Samplers:
    """The world with its two samplers."""
    item, topic, weight = video_entries(preset.shape, videos)
    by_video = BucketSampler(
        item, topic, videos.tone[item], videos.upload_hour[item], weight, len(related), n_tones
    )
    item, topic, weight = comment_entries(preset.shape, videos, comments)
    hour = videos.upload_hour[comments.video[item]]
    by_comment = BucketSampler(item, topic, comments.tone[item], hour, weight, len(related), n_tones)
    return Samplers(preset, videos, comments, related, n_tones, by_video, by_comment)


def _act(folder: Path, world: Samplers, users: np.ndarray, seed: int) -> tuple[Tastes, dict[str, Any]]:
    """Everything people do, a block of users at a time."""
    preset = world.preset
    share = np.random.default_rng((seed, _SHARES)).lognormal(0.0, 0.4, len(world.related))
    inter = tables.CsvWriter(folder / _LIKES_FILE)
    comment_inter = tables.CsvWriter(folder / _TOUCHES_FILE)
    features = tables.CsvWriter(folder / _USERS_FILE)
    parts, counts = [], {"users": len(users), "likes": 0, "comment_likes": 0, "unliked": 0}
    for block, start in enumerate(range(0, len(users), preset.user_block)):
        ids = users[start : start + preset.user_block]
        rng = np.random.default_rng((seed, _TASTES, block))
        tastes = draw_tastes(rng, preset.shape, len(ids), share, world.related, world.n_tones)
        rng = np.random.default_rng((seed, _ACTS, block))
        likes = draw_likes(rng, world, tastes)
        comment_likes = draw_comment_likes(rng, world, tastes, likes)
        unliked = draw_unliked(rng, world, tastes, likes, comment_likes)
        suits = appeal(world, tastes, unliked)
        inter.add(tables.impressions(rng, world.videos, ids, likes, unliked, suits))
        comment_inter.add(tables.comment_interactions(rng, world.videos, world.comments, ids, comment_likes))
        features.add(tables.user_features(rng, ids))
        parts.append(tastes)
        for name, events in (("likes", likes), ("comment_likes", comment_likes), ("unliked", unliked)):
            counts[name] += len(events)
    return join_tastes(parts), counts


def _describe(folder: Path, world: Samplers, lexicon: Lexicon, seed: int) -> None:
    """Titles and comments, a block of rows at a time."""
    videos, comments, block = world.videos, world.comments, world.preset.text_block
    categories = np.array([topic.domain for topic in lexicon.topics])
    out = tables.CsvWriter(folder / _VIDEOS_FILE)
    for start in range(0, len(videos), block):
        rows = slice(start, start + block)
        writer = Writer(lexicon, np.random.default_rng((seed, _TITLES, start)))
        columns = (videos.topic, videos.second, videos.decoy, videos.tone, videos.rank_share)
        captions = [writer.title(*row) for row in zip(*(c[rows].tolist() for c in columns), strict=True)]
        extras = np.random.default_rng((seed, _EXTRAS, 0, start))
        out.add(tables.video_features(extras, videos, captions, categories, start))
    out = tables.CsvWriter(folder / _COMMENTS_FILE)
    for start in range(0, len(comments), block):
        rows = slice(start, start + block)
        writer = Writer(lexicon, np.random.default_rng((seed, _CONTENTS, start)))
        parts = (videos.topic[comments.video[rows]], comments.mention[rows], comments.tone[rows])
        contents = [writer.comment(*row) for row in zip(*(part.tolist() for part in parts), strict=True)]
        extras = np.random.default_rng((seed, _EXTRAS, 1, start))
        out.add(tables.comment_features(extras, videos, comments, contents, start))
