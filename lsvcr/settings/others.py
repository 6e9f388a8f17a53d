"""Settings of the other recommenders."""

from dataclasses import dataclass
from typing import Literal

from lsvcr.settings.fields import option


@dataclass
class FittedSettings:
    """What every recommender of `lsvcr train` has; all that those have which are fitted without training."""

    data_path: str = option("./data", "prepared dataset")
    output_dir: str = option("./ckpt/baseline", "run folder; holds best/ and metrics.json")
    per_device_eval_batch_size: int = option(512, "rows a process and evaluation step")
    max_candidate_num: int = option(100, "candidates of the sampled protocol")
    max_his: int = option(200, "latest videos of a history that the recommender sees")


@dataclass
class EpochSettings:
    """What every training in epochs has."""

    seed: int = option(2024, "seed of order, negatives and initialisation")
    per_device_train_batch_size: int = option(
        128, "training rows (users' sequences) a process and micro-step"
    )
    gradient_accumulation_steps: int = option(1, "micro-steps of one optimiser step")
    dataloader_num_workers: int = option(0, "worker processes that build batches")
    learning_rate: float = option(1e-3, "peak learning rate")
    weight_decay: float = option(0.0, "AdamW weight decay")
    adam_beta2: float = option(
        0.999, "AdamW: how slowly the mean of squared gradients forgets; 0.98 forgets in 50 steps"
    )
    lr_scheduler_type: Literal["constant", "linear", "cosine", "cosine_tenth"] = option(
        "constant", "after warm-up; cosine_tenth ends at a tenth of the peak"
    )
    warmup_ratio: float = option(0.0, "share of steps with rising learning rate")
    num_train_epochs: int = option(100, "at most this many epochs")
    patience: int = option(10, "stop after this many validations without a better metric")
    evaluation_strategy: Literal["epoch", "steps", "no"] = option("epoch", "steps: every eval_steps epochs")
    eval_steps: int = option(1, "epochs between validations when evaluation_strategy is steps")
    resume: bool = option(True, "continue an interrupted run found in output_dir")
    report_to: Literal["tensorboard", "none"] = option("tensorboard", "where curves go")


@dataclass
class BaselineSettings(FittedSettings, EpochSettings):
    """What every trained recommender of `lsvcr train` has; each adds its own in its file of lsvcr/baselines/."""

    metric_for_best_model: str = option(
        "ndcg@10",
        "validation metric that picks the best epoch: recall, hr, precision, ndcg, mrr or map at any K",
    )
    val_protocol: Literal["full", "sampled"] = option(
        "full", "candidates of the validation: all videos, or those stored with the dataset"
    )
    neg_video_num: int = option(0, "sampled negatives; 0 = the whole catalogue")


@dataclass
class CompleteSettings:
    """Settings of `lsvcr complete`."""

    run: str = option("", "run folder of `lsvcr train bert4rec`, or its best/ or last/")
    data: str = option("", "prepared dataset that it was trained on")
    history: str = option(
        "", 'videos as the raw files name them, oldest first, with blanks or commas between: "5 17 3"'
    )
    direction: Literal["post", "pre", "both"] = option(
        "post", "videos are put behind the history, in front of it, or at either end in turn"
    )
    n: int = option(5, "how many")
    json: bool = option(False, "print one JSON object instead of a table")
