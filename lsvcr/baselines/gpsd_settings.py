"""Settings of GPSD's pretraining; nothing here needs torch."""

from dataclasses import dataclass
from typing import Literal

from lsvcr.settings import BaselineSettings, option
from lsvcr.utils.errors import UserError


@dataclass
class BodySettings:
    """Shape of the transformer that pretraining hands on."""

    hidden: int = option(64, "width d")
    layers: int = option(2, "transformer blocks")
    heads: int = option(2, "attention heads")
    inner: int = option(0, "inner width of the gated feed-forward layers; 0 = 8/3 of hidden")
    dropout: float = option(0.1, "dropout on hidden states")
    attention_dropout: float = option(0.1, "dropout on attention weights")
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


def check_body(settings: BodySettings) -> None:
    """Raise a UserError where the shape is out of range or does not go together."""
    for flag in ("hidden", "layers", "heads"):
        if getattr(settings, flag) <= 0:
            raise UserError(f"--{flag} {getattr(settings, flag)} must be above 0")
    if settings.inner < 0:
        raise UserError(f"--inner {settings.inner} must be above 0, or 0 for 8/3 of --hidden")
    if settings.hidden % (2 * settings.heads):
        raise UserError(
            f"--hidden {settings.hidden} must be a multiple of twice --heads {settings.heads}: rotary positions turn "
            "the numbers of a head in pairs"
        )
    for flag in ("dropout", "attention_dropout"):
        if not 0 <= getattr(settings, flag) < 1:
            raise UserError(f"--{flag} {getattr(settings, flag)} must be at least 0 and below 1")
