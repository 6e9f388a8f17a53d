"""Word lists and phrase banks of one language, and the map of neighbouring topics."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

LEXICON_DIR = Path(__file__).parent / "lexicon"
TONE_BANKS = ("titles", "tags", "comments")


@dataclass(frozen=True)
class TopicWords:
    """What people say about one topic, most usual words first."""

    name: str
    domain: str
    words: tuple[str, ...]
    acts: tuple[str, ...]
    hints: tuple[str, ...]
    shared: tuple[str, ...]


@dataclass(frozen=True)
class Lexicon:
    """Everything the writer needs in one language.

    `tones[name]` has the banks `titles` (topic and tone), `tags` and `comments` (tone alone).
    `phrases` holds the banks that carry neither, `style` the joints of the language.
    """

    language: str
    topics: tuple[TopicWords, ...]
    tone_names: tuple[str, ...]
    tones: dict[str, dict[str, tuple[str, ...]]]
    phrases: dict[str, tuple[str, ...]]
    style: dict[str, str]
    related: np.ndarray

    @property
    def topic_names(self) -> tuple[str, ...]:
        """Names in topic order."""
        return tuple(topic.name for topic in self.topics)


def _read(path: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)


def _split(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.replace("，", ",").split(",") if word.strip()))


def _read_topics(folder: Path) -> dict[str, TopicWords]:
    topics = {}
    for path in sorted(folder.glob("*.yaml")):
        table = _read(path)
        if "topics" not in table:
            continue
        shared = _split(table["shared"])
        for name, banks in table["topics"].items():
            topics[name] = TopicWords(
                name,
                table["domain"],
                _split(banks["words"]),
                _split(banks["acts"]),
                tuple(banks["hints"]),
                shared,
            )
    return topics


def related_topics(topics: tuple[TopicWords, ...], links: list[list[str]]) -> np.ndarray:
    """Row-stochastic (K, K) matrix: how near another topic is; the diagonal is zero.

    Topics of one domain count 1, linked topics of two domains 0.8, any other pair 0.01.
    """
    index = {topic.name: i for i, topic in enumerate(topics)}
    domains = np.array([topic.domain for topic in topics])
    near = np.where(domains[:, None] == domains[None, :], 1.0, 0.01)
    for first, second in links:
        near[index[first], index[second]] = near[index[second], index[first]] = 0.8
    np.fill_diagonal(near, 0.0)
    return near / near.sum(axis=1, keepdims=True)


@lru_cache(maxsize=4)
def load_lexicon(language: str) -> Lexicon:
    """Read the word lists of `language` ("en" or "zh") from the package."""
    order = _read(LEXICON_DIR / "links.yaml")
    folder = LEXICON_DIR / language
    found = _read_topics(folder)
    topics = tuple(found[name] for name in order["topics"])
    tones = _read(folder / "tones.yaml")
    phrases = _read(folder / "phrases.yaml")
    style = phrases.pop("style")
    return Lexicon(
        language=language,
        topics=topics,
        tone_names=tuple(order["tones"]),
        tones={name: {bank: tuple(tones[name][bank]) for bank in TONE_BANKS} for name in order["tones"]},
        phrases={name: tuple(bank) for name, bank in phrases.items()},
        style=style,
        related=related_topics(topics, order["links"]),
    )
