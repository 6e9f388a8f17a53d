"""Bounds of the numbers in settings, by name: what a number means, it means in every command."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from lsvcr.utils.errors import UserError

Bound = tuple[Callable[[float], bool], str]
"""Does a value fit, and how a sentence about one that does not goes on."""

_ABOVE_0: Bound = (lambda value: value > 0, " must be above 0")
_FROM_0: Bound = (lambda value: value >= 0, " must be 0 or more")
_NONE_OR_MORE: Bound = (_FROM_0[0], ": give 0 (none) or more")
_CATALOGUE_OR_MORE: Bound = (_FROM_0[0], " must be 0 (the whole catalogue) or more")
_SHARE: Bound = (lambda value: 0 <= value <= 1, " must be between 0 and 1")
_BELOW_1: Bound = (lambda value: 0 <= value < 1, " must be at least 0 and below 1")

_NAMES: dict[Bound, str] = {
    _ABOVE_0: "hidden layers heads inner text_width temperature max_position max_his max_text_length directions "
    "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps learning_rate "
    "head_start_learning_rate lora_alpha ddp_timeout logging_steps eval_steps eval_pool patience wide_samples "
    "id_text_negatives negatives time_bucket_count",
    _FROM_0: "seed sample_seed rows_seed dataloader_num_workers sr_learning_rate head_learning_rate weight_decay "
    "max_grad_norm lora_r llm_layers user_layers item_emb_token_n text_token_budget max_train_samples max_val_samples "
    "max_rows save_total_limit user_core video_core min_history "
    "id_init_std min_id_count lm_loss_weight rec_loss_weight contrast_loss_weight "
    "wide_loss_weight taste_loss_weight id_text_loss_weight feature_loss_weight",
    _NONE_OR_MORE: "contrast_batch head_start_epochs head_start_taste_steps wide_titles taste_texts",
    _CATALOGUE_OR_MORE: "neg_video_num",
    _SHARE: "warmup_ratio gbce_t",
    _BELOW_1: "dropout attention_dropout lora_dropout adam_beta2",
}
_BOUNDS = {name: bound for bound, names in _NAMES.items() for name in names.split()}


def check_bounds(settings: Any, *positive: str) -> None:
    """Refuse numbers that no command can work with.

    Where 0 is the default of a number that must be above 0, it has a meaning of its own and is fine.

    Args:
        settings: of any command, a dataclass.
        positive: further fields that must be above 0, where there are such.

    Raises:
        UserError: naming the flag.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        bound = _ABOVE_0 if field.name in positive else _BOUNDS.get(field.name)
        if bound is _ABOVE_0 and field.default == 0:
            bound = _FROM_0
        if bound and not bound[0](value):
            raise UserError(f"--{field.name} {value}{bound[1]}")
