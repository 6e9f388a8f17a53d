"""HLLM runs in processes of their own, for `test_hllm_runs.py`: DeepSpeed leaves its state in a process."""

import dataclasses
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lsvcr.settings import HllmSettings
from tests.training.align_runs import Stopped
from tests.training.parts_runs import write_cut_configs

BASE = HllmSettings(
    model_name_or_path="tiny-random",
    llm_layers=1,
    user_layers=1,
    lora_r=2,
    max_his=4,
    per_device_train_batch_size=4,
    save_strategy="steps",
    save_steps=2,
    evaluation_strategy="steps",
    eval_steps=3,
    max_steps=5,
    logging_steps=2,
    item_fields="title",
    learning_rate=3e-3,
    text_token_budget=600,
    gradient_checkpointing=False,
    bf16=False,
    report_to="none",
)


def settings(data: str, out: Path, **changes: Any) -> HllmSettings:
    """`BASE` with changes."""
    return dataclasses.replace(BASE, data_path=data, output_dir=str(out), **changes)


def stop_before(step: int) -> Callable[[], None]:
    """Let the next run die before its 0-based optimiser step `step`; returns what undoes it."""
    from lsvcr.training.hllm import HllmTrainer

    real = HllmTrainer._step

    def dying(self: Any, number: int, *rest: Any) -> None:
        if number == step:
            raise Stopped
        real(self, number, *rest)

    HllmTrainer._step = dying  # type: ignore[method-assign]

    def undo() -> None:
        HllmTrainer._step = real  # type: ignore[method-assign]

    return undo


def straight_and_cut(folder: Path, data: str, **changes: Any) -> None:
    """One run straight through, and one that dies between checkpoints (after step 3) and is called again."""
    from lsvcr.training.hllm import hllm

    hllm(settings(data, folder / "straight", **changes))
    undo = stop_before(3)
    with suppress(Stopped):
        hllm(settings(data, folder / "cut", **changes))
    undo()
    hllm(settings(data, folder / "cut", **changes))


def gradients(folder: Path, data: str) -> dict[str, Any]:
    """Loss and gradients of one micro-step of 8 users, averaged over processes, without an engine."""
    from lsvcr.data.rank_joined import JoinedStream
    from lsvcr.data.store import open_dataset
    from lsvcr.training.align_state import trainable
    from lsvcr.training.hllm_setup import build
    from lsvcr.utils.distributed import rank, reduce_sum, world_size

    found: dict[str, Any] = {}
    for name, changes in {
        "in_batch": {},
        "sampled": {"neg_video_num": 7, "item_emb_token_n": 2, "lora_r": 0},
    }.items():
        own = settings(data, folder, lora_dropout=0.0, **changes)
        setup = build(own, open_dataset(data))
        noise = torch.Generator().manual_seed(3)
        for parameter_name, parameter in setup.model.named_parameters():
            if "lora_B" in parameter_name:  # else A would have no gradient
                parameter.data.normal_(std=0.1, generator=noise)
        stream = JoinedStream(
            setup.rows(), seed=1, batch=8 // world_size(), accumulation=1, negatives=own.neg_video_num,
            place=(rank(), world_size()), micro_steps=4,
        )  # fmt: skip
        batch = stream[1]
        reads = []
        model = setup.model.train()
        real = model._read
        model._read = lambda videos, budget, real=real, reads=reads: (  # type: ignore[method-assign]
            reads.append(videos.tolist()) or real(videos, budget)
        )
        losses = model(batch)
        losses["loss"].backward()
        found[name] = {
            "loss": float(reduce_sum(losses["loss"].detach()) / world_size()),
            "gradients": {
                key: reduce_sum(torch.zeros_like(p) if p.grad is None else p.grad) / world_size()
                for key, p in trainable(model).items()
            },
            "read": reads,
            "items": batch.items.tolist(),
            "users": len(batch),
        }
    return found


def two_process_runs(folder: Path, data: str) -> dict[str, Any]:
    """What takes two processes to show."""
    from lsvcr.training.hllm import HllmTrainer, hllm
    from lsvcr.utils.distributed import barrier, is_main

    found: dict[str, Any] = {**gradients(folder, data), "losses": {}}
    straight_and_cut(folder, data, per_device_train_batch_size=2)
    if is_main():
        write_cut_configs(folder)
    barrier()
    real = HllmTrainer._step
    name = ""

    def step(self: Any, number: int, batches: Any, window: Any) -> None:
        real(self, number, batches, window)
        found["losses"].setdefault(name, []).append(window.last_loss)

    HllmTrainer._step = step  # type: ignore[method-assign]
    common = {
        "max_steps": 2, "save_steps": 1, "lora_dropout": 0.0, "per_device_train_batch_size": 2,
        "item_emb_token_n": 1, "gradient_checkpointing": True, "evaluation_strategy": "no",
    }  # fmt: skip
    configs = {"z2": "config/ds_z2_fp32.json", "z3": str(folder / "ds_z3_fp32.json")}
    for name, config in configs.items():
        hllm(settings(data, folder / name, deepspeed=config, **common))
    name = "changed"
    undo = stop_before(1)
    with suppress(Stopped):
        hllm(settings(data, folder / "changed", deepspeed=configs["z3"], **common))
    undo()
    hllm(settings(data, folder / "changed", deepspeed=configs["z2"], **common))
    return found


def single_process_runs(folder: Path, data: str) -> dict[str, Any]:
    """Everything that one process can show, in one process."""
    from lsvcr.training.hllm import hllm
    from lsvcr.utils.errors import UserError

    found: dict[str, Any] = gradients(folder, data)
    straight_and_cut(folder, data)
    shutil.copytree(folder / "straight", folder / "again")
    found["again"] = hllm(settings(data, folder / "again"))

    def refused(name: str, **changes: Any) -> str:
        try:
            hllm(settings(data, folder / name, **changes))
        except UserError as error:
            return str(error)
        return ""

    found["other_settings"] = refused("straight", learning_rate=1e-2, lora_r=4)
    found["other_negatives"] = refused(
        "straight", per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    found["one_user"] = refused("none", per_device_train_batch_size=1, model_name_or_path="nowhere")
    found["no_column"] = refused("none", item_fields="title,genre")
    # Learns, in full, with learned tokens; ends when its figure gets no better.
    hllm(
        settings(
            data, folder / "learns", max_steps=40, per_device_train_batch_size=24, lora_r=0, item_emb_token_n=1,
            head_learning_rate=3e-3, logging_steps=1, item_fields="title,category", eval_steps=10, patience=2,
            lr_scheduler_type="constant", metric_for_best_model="eval_ndcg@10",
        )
    )  # fmt: skip
    # The item LLM frozen, with sampled negatives: its texts are read once.
    hllm(
        settings(
            data, folder / "frozen", freeze_item_llm=True, neg_video_num=6, max_steps=2, evaluation_strategy="no",
            load_best_model_at_end=False, gradient_accumulation_steps=2, dataloader_num_workers=1,
        )
    )  # fmt: skip
    return found
