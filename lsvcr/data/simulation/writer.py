"""Titles and comments as sentences: a few telling words among everyday talk."""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import accumulate

import numpy as np

from lsvcr.data.simulation.lexicon import Lexicon
from lsvcr.data.simulation.world import NONE

_SLOT = re.compile(r"\{(\w+)\}")
_REFILL = 1 << 16


class Dice:
    """Cheap single draws from a numpy generator, taken in blocks."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._values: list[float] = []

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        if not self._values:
            self._values = self._rng.random(_REFILL).tolist()
        return self._values.pop()

    def chance(self, share: float) -> bool:
        """True with probability `share`."""
        return self.unit() < share

    def pick(self, bank: Sequence[str]) -> str:
        """One of the bank, all alike."""
        return bank[int(self.unit() * len(bank))]

    def between(self, low: int, high: int) -> int:
        """Integer in [low, high]."""
        return low + int(self.unit() * (high - low + 1))


@cache
def zipf_edges(count: int, tenths: int) -> tuple[float, ...]:
    """Cumulative probabilities of ranks 1..count under rank^-(tenths / 10)."""
    edges = list(accumulate((rank + 1.5) ** (-tenths / 10.0) for rank in range(count)))
    return tuple(edge / edges[-1] for edge in edges)


class Writer:
    """Writes texts of one language; the same generator state gives the same texts."""

    def __init__(self, lexicon: Lexicon, rng: np.random.Generator) -> None:
        self.lexicon = lexicon
        self.dice = Dice(rng)
        self._makers: dict[str, Callable[[], str]] = {
            name: partial(self.dice.pick, bank)
            for name, bank in lexicon.phrases.items()
            if name in ("name", "place", "weekday", "month", "room", "time", "money", "thing", "rel")
        }
        self._makers["n"] = lambda: str(self.dice.between(2, 40))
        self._makers["sec"] = lambda: str(self.dice.between(10, 59))

    def word(self, topic: int, fame: float) -> str:
        """A word of the topic; texts of famous videos (fame near 1) use the usual words more."""
        words, dice = self.lexicon.topics[topic], self.dice
        if dice.chance(0.08):
            return dice.pick(words.shared)
        edges = zipf_edges(len(words.words), 11 + round(8 * fame))
        chosen = words.words[min(bisect_right(edges, dice.unit()), len(words.words) - 1)]
        if dice.chance(0.15):
            modifier = dice.pick(self.lexicon.phrases["modifiers"])
            return self.lexicon.style["modifier"].format(m=modifier, w=chosen)
        return chosen

    def fill(
        self, frame: str, topic: int = NONE, other: int = NONE, second: int = NONE, fame: float = 0.6
    ) -> str:
        """Replace every slot of the frame: words and acts of the given topics, and fillers."""

        def expand(match: re.Match[str]) -> str:
            slot = match.group(1)
            if slot in self._makers:
                return self._makers[slot]()
            of = {"w": topic, "o": other, "w2": second, "a": topic, "oa": other, "a2": second}[slot]
            if slot in ("a", "oa", "a2"):
                return self.dice.pick(self.lexicon.topics[of].acts)
            return self.word(of, fame)

        return _SLOT.sub(expand, frame)

    def phrase(self, bank: str, **slots: int) -> str:
        """A filled phrase of a bank that carries no tone."""
        return self.fill(self.dice.pick(self.lexicon.phrases[bank]), **slots)

    def _core(self, topic: int, tone: int, fame: float) -> str:
        dice, style = self.dice, self.lexicon.style
        bank = self.lexicon.tones[self.lexicon.tone_names[tone]]
        kind = dice.unit()
        if kind < 0.08:
            said, tag = dice.pick(self.lexicon.topics[topic].hints), self.fill(dice.pick(bank["tags"]))
            return style["comma"].join((said, tag) if dice.chance(0.6) else (tag, said))
        if kind < 0.25:
            said = self.fill(dice.pick(self.lexicon.phrases["neutral"]), topic=topic, fame=fame)
            return style["comma"].join((said, self.fill(dice.pick(bank["tags"]))))
        return self.fill(dice.pick(bank["titles"]), topic=topic, fame=fame)

    def title(self, topic: int, second: int, decoy: int, tone: int, fame: float) -> str:
        """A title that names topic and tone in passing, and perhaps a topic it is not about."""
        dice, style = self.dice, self.lexicon.style
        text = self._core(topic, tone, fame)
        if second != NONE and dice.chance(0.8):
            text += style["space"] + self.phrase("second", second=second)
        opened = False
        if decoy != NONE:
            if dice.chance(0.5):
                opened = True
                text = self.phrase("mislead_before", other=decoy) + style["space"] + text
            else:
                text += style["comma"] + self.phrase("mislead_after", other=decoy)
        if not opened and dice.chance(0.08):
            text = self.phrase("openers") + style["space"] + text
        if dice.chance(0.03):
            text += (style["comma"] if dice.chance(0.7) else style["stop"]) + self.phrase("life")
        elif dice.chance(0.04):
            text += style["comma"] + self.phrase("closers")
        text = self._decorated(self._cased(text), 0.08, 0.1)
        if dice.chance(0.6):
            # Most of the uploaders file their video under a word of its topic.
            text += " #" + self.word(topic, fame).replace(" ", "")
        return text

    def comment(self, topic: int, mention: int, tone: int) -> str:
        """A comment in a tone, naming the topic `mention` unless that is NONE.

        `topic` is the video's: naming it or naming another one is said differently.
        """
        dice, style = self.dice, self.lexicon.style
        parts = [self.fill(dice.pick(self.lexicon.tones[self.lexicon.tone_names[tone]]["comments"]))]
        if mention == topic:
            parts.append(self.phrase("comments_own", topic=topic))
        elif mention != NONE:
            parts.append(self.phrase("comments_other", other=mention))
        elif dice.chance(0.4):
            parts.append(self.phrase("context"))
        if dice.chance(0.5):
            parts.reverse()
        joint = style["comma"] if dice.chance(0.6) else style["stop"]
        return self._decorated(self._cased(joint.join(parts)), 0.0, 0.25)

    def _cased(self, text: str) -> str:
        kind = self.dice.unit()
        if kind < 0.45:
            return text[:1].upper() + text[1:]
        if kind < 0.75:
            return text.lower()
        return text

    def _decorated(self, text: str, tags: float, signs: float) -> str:
        dice, phrases, space = self.dice, self.lexicon.phrases, self.lexicon.style["space"]
        if dice.chance(0.15):
            text += dice.pick(self.lexicon.phrases["endings"])
        if dice.chance(signs):
            if dice.chance(0.3):
                text += space + "[" + dice.pick(phrases["stickers"]) + "]"
            else:
                text += space + dice.pick(phrases["emoji"]) * dice.between(1, 2)
        if dice.chance(tags):
            for _ in range(dice.between(1, 2)):
                text += " #" + dice.pick(phrases["hashtags"])
        return text
