"""Settings of what makes and looks at data."""

from dataclasses import dataclass
from typing import Literal

from lsvcr.settings.fields import option


@dataclass
class SimulateSettings:
    """Settings of `lsvcr simulate`."""

    out: str = option("", "folder that receives the five CSV files and the planted truth")
    preset: Literal["tiny", "demo", "large"] = option("demo", "size of the world")
    language: Literal["en", "zh"] = option("en", "language of titles and comments")
    seed: int = option(2024, "seed of the whole world")


@dataclass
class PrepareSettings:
    """Settings of `lsvcr prepare`."""

    source: Literal["kuaicomt", "microlens", "amazon", "movielens", "tables", "official"] = option(
        "kuaicomt", "raw format (docs/data.md has an example of each)"
    )
    raw: str = option("", "folder with the raw files")
    out: str = option("", "folder of the prepared dataset")
    split: Literal["leave-last", "temporal"] = option("leave-last", "how val and test are cut")
    val_share: float = option(0.1, "temporal split: share of events in validation")
    test_share: float = option(0.1, "temporal split: share of events in test")
    user_core: int = option(5, "keep users with at least this many liked videos")
    video_core: int = option(0, "keep videos with at least this many likes (0 keeps cold ones)")
    min_history: int = option(1, "earliest event of a user that becomes a target has this many before it")
    signals: str = option("is_like", "kuaicomt: columns that count as liking a video, separated by commas")
    comment_signals: str = option(
        "is_like,is_reply", "kuaicomt: columns that count as an interaction with a comment"
    )
    impressions: bool = option(
        True, "kuaicomt, tables: also write what users were shown and whether they clicked, for click models"
    )
    click_signal: str = option(
        "is_click",
        "kuaicomt: columns that count as a click; where all are empty, --signals stand in for them",
    )
    min_rating: float = option(3.5, "movielens, amazon: ratings at or above this count as a like")
    columns: str = option("", "tables: YAML file that names files and columns; empty = columns.yaml in --raw")
    candidates: int = option(100, "stored evaluation candidates of a sample")
    seed: int = option(2024, "seed of the stored candidates")
    skip_bad_rows: bool = option(False, "count and list broken rows instead of stopping")


@dataclass
class ExportOfficialSettings:
    """Settings of `lsvcr export-official`."""

    data: str = option("", "prepared dataset")
    out: str = option("", "folder to write; an earlier export there is replaced")
    max_history: int = option(0, "latest entries of each history that a sample shows; 0 = all")
    embeddings: str = option(
        "", "folder with photo_embs.npy and comment_embs.npy to add; empty = the dataset's, if any"
    )


@dataclass
class DoctorSettings:
    """Settings of `lsvcr doctor`."""

    data: str = option("", "prepared dataset")
    llm: str = option(
        "auto",
        "count text lengths in this LLM's tokens: smollm2-135m, tiny-random, a folder, a .gguf file, a hub id or none; "
        "auto = smollm2-135m where its package is installed",
    )
    embeddings: str = option("", "folder of text vectors to audit too, such as a stage-one run")
    write_config: str = option("", "folder that receives align.yaml and finetune.yaml fitted to the data")
    tokens_per_second: float = option(
        360.0, "assumed speed of stage one (360: SmolLM2-135M with LoRA on 2 CPU cores)"
    )
    gflops: float = option(30.0, "assumed speed of stage two in 10^9 operations a second (30: 2 CPU cores)")
    json: bool = option(False, "print one JSON object instead of a report")
