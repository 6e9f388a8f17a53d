"""ZeRO-3: weights cut among the processes, so that an LLM need not fit into one of them.

Every weight is gathered where a module is about to use it and let go behind it, by all processes together: they must
run the LLM equally often. Everything here does nothing where weights are whole.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lsvcr.utils.deepspeed_ops import prepare_cpu_ops
from lsvcr.utils.distributed import rank, world_size

ONE_BATCH = 1 << 40
"""Tokens of a text batch that holds all texts of a step: with less, the processes could need different numbers."""


def is_cut(config: Mapping[str, Any] | None) -> bool:
    """Does this DeepSpeed configuration, if there is one, ask for weights cut among the processes?"""
    return bool(config and config["zero_optimization"]["stage"] == 3)


def numel(parameter: Tensor) -> int:
    """Numbers in a whole parameter, cut or not."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def shape(parameter: Tensor) -> torch.Size:
    """Shape of a whole parameter, cut or not."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


@contextmanager
def loading_in_parts(config: Mapping[str, Any] | None, micro_batch: int, accumulation: int) -> Iterator[None]:
    """What transformers loads inside is cut as it is read: no process ever holds the whole.

    Args:
        config: from `engine.read_config`; nothing happens without stage 3.
        micro_batch, accumulation: DeepSpeed's parser wants them.
    """
    if config is None or not is_cut(config):
        yield
        return
    prepare_cpu_ops()  # transformers is about to start DeepSpeed
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    sizes = {"train_micro_batch_size_per_gpu": micro_batch, "gradient_accumulation_steps": accumulation}
    # transformers keeps a weak reference, so the name must live as long as the block.
    kept = HfDeepSpeedConfig({**config, **sizes})
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del kept


@contextmanager
def whole_while_used(module: nn.Module) -> Iterator[None]:
    """Let a cut `module` be used without an engine: each part gathers its own weights and lets them go."""

    def gather(part: nn.Module, _: Any) -> None:
        for parameter in _cut(part.parameters(recurse=False)):
            parameter.all_gather()

    def let_go(part: nn.Module, *_: Any) -> None:
        for parameter in _cut(part.parameters(recurse=False)):
            parameter.partition()

    handles = []
    for part in module.modules():
        handles += [part.register_forward_pre_hook(gather), part.register_forward_hook(let_go)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """The trained parameters of a cut `module` are whole inside; every process must come here. They are only read."""
    parameters = [p for p in _cut(module.parameters()) if p.requires_grad]
    if not parameters:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        yield


def round_as_the_engine(module: nn.Module, config: Mapping[str, Any]) -> None:
    """Bring what is not cut yet to the precision of what is; DeepSpeed does that only where nothing is cut."""
    if is_cut(config) and config.get("bf16", {}).get("enabled"):
        for parameter in module.parameters():
            if not hasattr(parameter, "ds_id"):
                parameter.data = parameter.data.bfloat16()


def keep_whole(engine: Any, module: nn.Module) -> None:
    """Exempt the parameters of `module` from being cut (the optimiser's state stays cut).

    For the heads: they are small, and are called with float32 copies of their parameters, which DeepSpeed's hooks
    cannot take for the parameters. With nothing to gather the hooks are not needed.
    """
    parameters = list(_cut(module.parameters()))
    if not parameters:
        return
    known = {id(parameter) for parameter in engine.optimizer.persistent_parameters}
    for parameter in parameters:
        parameter.ds_persist = True
        if id(parameter) not in known:
            engine.optimizer.persistent_parameters.append(parameter)
    parameters[0].all_gather(parameters)
    for part in module.modules():
        part._forward_pre_hooks.clear()
        part._forward_hooks.clear()


def set_parameter(parameter: Any, value: Tensor) -> None:
    """Give a parameter, cut or not, its whole value; the same on every process."""
    if not hasattr(parameter, "ds_id"):
        parameter.data.copy_(value)
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(value)
    if parameter.ds_persist:
        parameter.all_gather()


def set_master(parameter: Any, value: Tensor, moment: str | None = None) -> None:
    """Set a parameter's fp32 master weight, or one of its moments, to a whole value.

    DeepSpeed's own function for cut ones fails where the pieces do not come out even.
    """
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    in_parts = hasattr(parameter, "ds_id")
    if in_parts:
        size = parameter.ds_tensor.numel()
        padded = value.new_zeros(size * world_size())
        padded[: value.numel()] = value.flatten()
        value = padded[rank() * size : (rank() + 1) * size]
    if moment is None:
        (safe_set_local_fp32_param if in_parts else safe_set_full_fp32_param)(parameter, value)
    else:
        (safe_set_local_optimizer_state if in_parts else safe_set_full_optimizer_state)(
            parameter, value, moment
        )


def _cut(parameters: Any) -> Iterator[Any]:
    return (parameter for parameter in parameters if hasattr(parameter, "ds_id"))
