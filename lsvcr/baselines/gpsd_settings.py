"""Settings of both trainings of GPSD; nothing here needs torch."""

from dataclasses import dataclass
from typing import Literal

from lsvcr.settings import BaselineSettings, EpochSettings, option
from lsvcr.settings.bounds import check_bounds
from lsvcr.utils.errors import UserError


@dataclass
class BodySettings:
    """Shape of the transformer that pretraining hands on."""

    hidden: int = option(64, "width d")
    layers: int = option(2, "transformer blocks")
    heads: int = option(2, "attention heads")
    inner: int = option(0, "inner width of the gated feed-forward layers; 0 = 8/3 of hidden")
    dropout: float = option(0.1, "dropout on hidden states")
    attention_dropout: float = option(0.0, "dropout on attention weights")
    features: str = option(
        "auto",
        "of a video beside its id: category,author, or one of them, or none; auto = those that the dataset tells",
    )


@dataclass
class GpsdSettings(BodySettings, BaselineSettings):
    """Settings of `lsvcr train gpsd`."""

    neg_video_num: int = option(
        512, "uniform negatives that the targets of a sequence share; 0 = the whole catalogue"
    )
    lr_scheduler_type: Literal["constant", "linear", "cosine", "cosine_tenth"] = option(
        "cosine_tenth", "after warm-up; cosine_tenth ends at a tenth of the peak"
    )
    warmup_ratio: float = option(0.02, "share of steps with rising learning rate")
    weight_decay: float = option(0.1, "AdamW weight decay")
    feature_loss_weight: float = option(1.0, "weight of each feature's loss; the next video's has 1")
    windows: bool = option(
        False, "train on all of a history longer than max_his, window by window; False: on its latest videos"
    )


@dataclass
class ClickSettings(BodySettings, EpochSettings):
    """Settings of `lsvcr clicks`."""

    data_path: str = option("./data", "prepared dataset")
    output_dir: str = option("./ckpt/clicks", "run folder; holds best/ and metrics.json")
    transfer: str = option(
        "ft-sf",
        "what comes from the pretraining: nt = nothing, ft = all, st = the embedding tables (the sparse part); ft-sf "
        "and st-sf also freeze the tables",
    )
    pretrained: str = option("", "run folder of `lsvcr train gpsd`; empty for nt")
    click_samples: Literal["auto", "impressions", "sampled"] = option(
        "auto", "sampled: liked videos against drawn ones; auto = impressions where the dataset has them"
    )
    negatives: int = option(4, "sampled: drawn videos for each liked one")
    sample_seed: int = option(2024, "sampled: seed of the drawn videos, apart from that of the training")
    look: Literal["causal", "both_ways"] = option("causal", "what a step of history and candidate sees")
    context: bool = option(
        True, "the head also sees the number of likes so far, the hours since the latest and the time of day"
    )
    max_his: int = option(50, "latest videos of a history that the model sees")
    per_device_train_batch_size: int = option(256, "samples a process and micro-step")
    per_device_eval_batch_size: int = option(1024, "samples a process and evaluation step")
    lr_scheduler_type: Literal["constant", "linear", "cosine", "cosine_tenth"] = option(
        "cosine_tenth", "after warm-up; cosine_tenth ends at a tenth of the peak"
    )
    warmup_ratio: float = option(0.02, "share of steps with rising learning rate")
    weight_decay: float = option(0.1, "AdamW weight decay")
    num_train_epochs: int = option(10, "at most this many epochs")
    metric_for_best_model: Literal["auc", "gauc"] = option(
        "auc", "validation metric that picks the best epoch"
    )


def check_clicks(settings: ClickSettings) -> None:
    """Raise a UserError where settings of `lsvcr clicks` are out of range or do not go together."""
    check_body(settings, "num_train_epochs")


def check_body(settings: BodySettings, *positive: str) -> None:
    """Raise a UserError where a number is out of range (`positive` as in `check_bounds`) or the shape does not fit."""
    check_bounds(settings, *positive)
    if settings.hidden % (2 * settings.heads):
        raise UserError(
            f"--hidden {settings.hidden} must be a multiple of twice --heads {settings.heads}: rotary positions turn "
            "the numbers of a head in pairs"
        )
