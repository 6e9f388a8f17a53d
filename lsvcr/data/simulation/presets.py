"""Sizes and shape parameters of the simulated worlds."""

from dataclasses import asdict, dataclass, field

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
START_MS = 1_696_032_000_000
"""First instant of the log: 2023-09-30 00:00 UTC."""

DAYS = 35
BACKLOG_DAYS = 60
HOURS = DAYS * 24


@dataclass(frozen=True)
class Shape:
    """How people, videos and comments behave; the same in every preset.

    Weights are relative probabilities; `_share` fields are probabilities.
    """

    popularity_slope: float = 0.8
    popularity_shift: float = 12.0
    freshness_days: float = 1e6
    new_share: float = 0.25
    second_topic_share: float = 0.10
    second_topic_weight: float = 0.35
    decoy_share: float = 0.08
    comments_least: float = 0.5
    comments_most: float = 60.0
    comments_spread: float = 1.0
    comment_slope: float = 0.3
    comment_reach: float = 0.6
    comment_topic_spill: float = 0.3
    comment_tone_follows: float = 0.25
    mention_other_share: float = 0.30
    mention_none_share: float = 0.25
    obsession_weight: float = 0.85
    phase_count: tuple[int, int] = (1, 2)
    tone_phase_count: tuple[int, int] = (1, 2)
    lead: float = 0.65
    neighbour_taste_share: float = 0.6
    neighbour_step_share: float = 0.75
    topic_smear: float = 0.03
    topic_floor: float = 0.02
    second_tone: float = 0.30
    other_tone: float = 0.05
    attached_share: float = 0.25
    comments_of_entry: tuple[float, float, float] = (0.60, 0.27, 0.13)


@dataclass(frozen=True)
class Preset:
    """Counts of one world."""

    users: int
    videos: int
    comments: int
    likes: float
    entries: float
    unliked: float
    user_block: int = 20_000
    text_block: int = 50_000
    shape: Shape = field(default_factory=Shape)

    def as_dict(self) -> dict[str, object]:
        """For the manifest."""
        return asdict(self)


PRESETS = {
    "tiny": Preset(
        users=60,
        videos=80,
        comments=320,
        likes=9.0,
        entries=6.0,
        unliked=1.5,
        shape=Shape(popularity_shift=3.0),
    ),
    "demo": Preset(users=2_000, videos=4_000, comments=9_000, likes=11.0, entries=6.5, unliked=2.5),
    "large": Preset(
        users=200_000,
        videos=100_000,
        comments=620_000,
        likes=50.0,
        entries=3.3,
        unliked=0.5,
        shape=Shape(popularity_slope=1.6, popularity_shift=300.0),
    ),
}
