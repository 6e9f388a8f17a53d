"""Settings with which every recommender trains in a second, and a world whose histories differ in length."""

import csv
from dataclasses import fields
from pathlib import Path
from typing import Any

from lsvcr.baselines.registry import Entry
from lsvcr.settings import FittedSettings

COMMON: dict[str, Any] = {
    "hidden": 16,
    "layers": 1,
    "heads": 2,
    "inner": 32,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "max_his": 5,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "num_train_epochs": 2,
    "report_to": "none",
}
"""Taken where a recommender has a setting of that name."""

OWN: dict[str, dict[str, Any]] = {"hllm_light": {"time_bucket_count": 64}}
"""Settings of single recommenders beside these."""

IN_BATCH: set[str] = {"hllm_light"}
"""Recommenders whose loss compares the rows of a batch with one another, so that it depends on how a step is cut."""


def small(entry: Entry, data: Path, out: Path, **changes: Any) -> FittedSettings:
    """Settings of `entry`'s own class."""
    known = {field.name for field in fields(entry.settings)}
    chosen = {**COMMON, **OWN.get(entry.name, {}), **changes}
    named = {name: value for name, value in chosen.items() if name in known}
    return entry.settings(data_path=str(data), output_dir=str(out), **named)


def embed_items(data: Path) -> None:
    """Give a prepared dataset the vectors that recommenders over a frozen LLM's items read, by the tiny LLM."""
    from lsvcr.settings import EmbedSettings
    from lsvcr.training.embed import embed

    embed(
        EmbedSettings(data_path=str(data), model_name_or_path="tiny-random", bf16=False, item_prompt="hllm")
    )


def shorten(raw: Path) -> None:
    """Leave person u of the tiny world their first 4 to 7 likes."""
    path = raw / "user_video_inter.csv"
    with path.open(newline="", encoding="utf-8") as stream:
        header, *rows = list(csv.reader(stream))
    kept, seen = [], dict.fromkeys({row[0] for row in rows}, 0)
    for row in rows:
        seen[row[0]] += 1
        if seen[row[0]] <= 4 + int(row[0]) % 4:
            kept.append(row)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *kept])
