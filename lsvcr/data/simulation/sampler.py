"""Exact soft-max sampling of items by topic taste x tone taste x weight, in time far below users x items."""

import numpy as np

from lsvcr.data.simulation.presets import HOURS

EVENT_BLOCK = 20_000


class BucketSampler:
    """Draws items with probability proportional to weight * topic taste * tone taste.

    Items are sorted into (topic, tone) buckets and, inside a bucket, by the hour from which they
    exist, so that what exists at a given hour is a prefix with a known mass. An item may stand in
    several buckets (a second topic); its probability is then the sum.
    """

    def __init__(
        self,
        item: np.ndarray,
        topic: np.ndarray,
        tone: np.ndarray,
        hour: np.ndarray,
        weight: np.ndarray,
        n_topics: int,
        n_tones: int,
    ) -> None:
        """All arrays are (N,), one row an item-topic pair; `hour` below zero means from the start."""
        self.n_topics, self.n_tones = n_topics, n_tones
        buckets = n_topics * n_tones
        bucket = topic * n_tones + tone
        hour = np.clip(hour, 0, HOURS - 1)
        order = np.lexsort((hour, bucket))
        self._item = item[order]
        self._edges = np.concatenate(([0.0], np.cumsum(weight[order])))
        sizes = np.bincount(bucket, minlength=buckets)
        self._first = np.concatenate(([0], np.cumsum(sizes)))[:-1]
        born = np.bincount(hour * buckets + bucket, minlength=HOURS * buckets).reshape(HOURS, buckets)
        self._alive = np.cumsum(born, axis=0)
        self._mass = self._edges[self._first + self._alive] - self._edges[self._first]

    def draw(
        self, rng: np.random.Generator, hour: np.ndarray, topic: np.ndarray, tone: np.ndarray
    ) -> np.ndarray:
        """One item an event.

        Args:
            hour: (E,) int, hours since the start of the log.
            topic: (E, K) topic taste. tone: (E, T) tone taste.

        Returns:
            (E,) item indices.
        """
        chosen = np.empty(len(hour), np.int64)
        for start in range(0, len(hour), EVENT_BLOCK):
            part = slice(start, start + EVENT_BLOCK)
            taste = (topic[part, :, None] * tone[part, None, :]).reshape(-1, self.n_topics * self.n_tones)
            reach = np.cumsum(taste * self._mass[hour[part]], axis=1)
            points = rng.random(len(reach)) * reach[:, -1]
            bucket = np.minimum((reach <= points[:, None]).sum(axis=1), reach.shape[1] - 1)
            low = self._first[bucket]
            alive = self._alive[hour[part], bucket]
            base = self._edges[low]
            point = base + rng.random(len(bucket)) * (self._edges[low + alive] - base)
            found = np.searchsorted(self._edges, point, side="right") - 1
            chosen[part] = self._item[np.clip(found, low, low + np.maximum(alive, 1) - 1)]
        return chosen
