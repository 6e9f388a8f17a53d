"""DeepSpeed around a model: process group, configuration, optimiser, learning rate."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lsvcr.training.engine_parts import round_as_the_engine
from lsvcr.utils.deepspeed_ops import prepare_cpu_ops
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import read_json
from lsvcr.utils.logging import get_logger

OURS = ("optimizer", "scheduler", "fp16", "gradient_clipping", "train_batch_size")
"""Keys of a DeepSpeed configuration that the settings of a run decide."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running means, by torch's names."""

PATIENCE = 1800.0
"""Seconds a process waits for the others: one may read its LLM or write while the rest are at the next step."""

logger = get_logger(__name__)


@contextmanager
def process_group(patience: float = PATIENCE) -> Iterator[torch.device]:
    """Join the process group that torchrun describes, or make one of this process alone.

    A group that is there already is used and left as it is; else it ends with the block, and DeepSpeed, which keeps
    groups of its own inside it, can then not be used again in this process.

    Args:
        patience: seconds after which a process that waits for another gives up.

    Yields:
        This process's device: its GPU (nccl) where there are GPUs, else the CPU (gloo).

    Raises:
        UserError: the address or port of the group cannot be used.
    """
    _end_with_launcher()
    use_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(device)
    if dist.is_initialized():
        yield device
        return
    _join("nccl" if use_gpu else "gloo", timedelta(seconds=patience))
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _join(backend: str, timeout: timedelta) -> None:
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it even where there is no launcher
    try:
        if dist.is_torchelastic_launched() or "MASTER_PORT" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"the processes cannot meet at {place} ({' '.join(str(error).split())[:200]}): "
            "choose another port with MASTER_PORT=..., and check that every machine reaches the first"
        ) from error


def _end_with_launcher() -> None:
    """Let a torchrun that is killed outright take its processes along: they would train on unseen."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def read_config(path: str | Path, *, bf16: bool) -> dict[str, Any]:
    """Read a DeepSpeed configuration for the wanted precision.

    Where the file's precision is not the wanted one, the file beside it whose name says the other
    (`bf16` <-> `fp32`) is read instead.

    Raises:
        UserError: no such file, not ZeRO stage 2 or 3, or a key that the settings decide is fixed in it.
    """
    source = _for_precision(Path(path), bf16)
    config = read_json(source)
    if not isinstance(config, dict):
        raise UserError(f"{source} is not a DeepSpeed configuration (a JSON object)")
    # "auto" is what such files say for values that the caller fills in; ours are filled in always.
    config = {key: value for key, value in config.items() if value != "auto"}
    fixed = sorted(key for key in OURS if _is_set(config.get(key)))
    if fixed:
        raise UserError(
            f"{source} sets {', '.join(fixed)}: remove it, the run's own flags decide that (--help)"
        )
    stage = config.get("zero_optimization", {}).get("stage")
    if stage not in (2, 3):
        raise UserError(f"{source} asks for ZeRO stage {stage}: set zero_optimization.stage to 2 or 3")
    if bool(config.get("bf16", {}).get("enabled")) != bf16:
        raise UserError(
            f"--bf16 {bf16} contradicts bf16.enabled in {source}: give another file with --deepspeed"
        )
    for key in ("fp16", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        config.pop(key, None)
    return config


def start_engine(
    model: nn.Module,
    groups: Iterable[dict[str, Any]],
    config: dict[str, Any],
    *,
    weight_decay: float,
    micro_batch: int,
    accumulation: int,
    max_grad_norm: float,
    patience: float = PATIENCE,
) -> Any:
    """Wrap `model` in a DeepSpeed engine with AdamW (betas 0.9 and 0.999, eps 1e-8).

    The optimiser is torch's own, so that nothing is compiled. In bf16 the engine keeps fp32 master weights and
    sums gradients in fp32.

    Args:
        model: parameters that need no gradient stay as they are.
        groups: parameter groups with `params` and `lr`.
        config: from `read_config`.
        weight_decay: decoupled.
        micro_batch, accumulation: samples a process and micro-step, micro-steps an optimiser step.
        max_grad_norm: clip at this norm; 0 = never.
        patience: as in `process_group`.
    """
    note = prepare_cpu_ops()
    import deepspeed

    if note:
        logger.info(note)
    round_as_the_engine(model, config)
    optimizer = torch.optim.AdamW(list(groups), betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay)
    sizes = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_grad_norm,
        "steps_per_print": None,
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config={**config, **sizes}, dist_init_required=False
    )
    _set_patience(timedelta(seconds=patience))
    open_moments(engine, 0)
    return engine


def _set_patience(timeout: timedelta) -> None:
    """DeepSpeed makes groups of its own, which wait as long as torch's defaults say, 30 minutes or 10."""
    if dist.get_world_size() > 1:
        for group in list(dist.distributed_c10d._world.pg_map):
            dist.distributed_c10d._set_pg_timeout(timeout, group)


def open_moments(engine: Any, step: int) -> None:
    """Give AdamW the state its first step would make, zero moments, with `step` steps counted.

    DeepSpeed links parameters to the optimiser's state once, inside its first step, when only the first parameter
    group has any; the others' moments could then be neither read nor set. Made before that, all are linked.
    """
    zero = engine.optimizer
    in_parts = engine.zero_optimization_stage() == 3
    for partition in zero.fp32_partitioned_groups_flat if in_parts else zero.single_partition_of_fp32_groups:
        zero.optimizer.state[partition] = {
            "step": torch.tensor(float(step)),
            **{moment: torch.zeros_like(partition) for moment in MOMENTS},
        }
    if not in_parts:  # ZeRO-3 looks the state up each time
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def set_learning_rate(engine: Any, factor: float) -> None:
    """Multiply every group's peak rate, which is kept in its `initial_lr`, by `factor`."""
    for group in engine.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def _for_precision(path: Path, bf16: bool) -> Path:
    # The default names a file of this repository, from wherever the command is given.
    in_house = Path(__file__).parents[2] / path
    path = in_house if not path.is_file() and in_house.is_file() else path
    if not path.is_file():
        raise UserError(f"--deepspeed {path}: no such file; give one such as config/ds_z2_bf16.json")
    wanted, other = ("bf16", "fp32") if bf16 else ("fp32", "bf16")
    sibling = path.with_name(path.name.replace(other, wanted))
    return sibling if other in path.name and sibling.is_file() else path


def _is_set(value: Any) -> bool:
    """A section counts as set unless it is switched off."""
    return value is not None and not (isinstance(value, dict) and value.get("enabled") is False)
