"""Stage-one runs in processes of their own, for `test_align.py`: DeepSpeed leaves its state in a process.

Every process writes what it found to `results.RANK.pt`; the tests read it.
"""

import dataclasses
import io
import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from lsvcr.settings import AlignSettings
from lsvcr.utils.logging import quiet_third_party
from tests.processes import run_together
from tests.training.untuned_files import write_vectors

BASE = AlignSettings(
    model_name_or_path="tiny-random",
    hidden=16,
    inner=32,
    text_width=16,
    max_phis_len=4,
    max_chis_len=4,
    max_source_length=1500,
    per_device_train_batch_size=2,
    eval_pool=6,
    logging_steps=2,
    save_steps=2,
    max_steps=5,
    gradient_checkpointing=False,
    report_to="none",
)
TINY_WIDTH = 32
"""Hidden width of `tiny-random`."""
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "lora_dropout": 0.0}


def run_processes(
    work: Callable[..., dict[str, Any]], count: int, folder: Path, **arguments: Any
) -> list[dict]:
    """Call `work(folder, **arguments)` in `count` processes of one gloo group; what each returned, by rank."""
    run_together(_process, (count, work, str(folder), arguments), count)
    return [torch.load(folder / f"results.{rank}.pt", weights_only=False) for rank in range(count)]


def _process(
    rank: int, count: int, work: Callable[..., dict[str, Any]], folder: str, arguments: dict
) -> None:
    quiet_third_party()
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    torch.save(work(Path(folder), **arguments), f"{folder}/results.{rank}.pt")
    dist.destroy_process_group()


def settings(data: str, out: Path, **changes: Any) -> AlignSettings:
    """`BASE` with changes."""
    return dataclasses.replace(BASE, data_path=data, output_dir=str(out), **changes)


class Kept(logging.Handler):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Stopped(BaseException):
    """Stands for kill -9: nothing in the training code may catch it."""


def stop_before(step: int) -> Callable[[], None]:
    """Let the next run die before its 0-based optimiser step `step`; returns what undoes it."""
    from lsvcr.training import align

    real = align.AlignTrainer._step

    def dying(self: Any, number: int, *rest: Any) -> None:
        if number == step:
            raise Stopped
        real(self, number, *rest)

    align.AlignTrainer._step = dying

    def undo() -> None:
        align.AlignTrainer._step = real

    return undo


def untuned_vectors(folder: Path, data: str) -> Path:
    """Folder of vectors as wide as the random LLM, the same for every process."""
    from lsvcr.data.store import open_dataset
    from lsvcr.utils.distributed import barrier, is_main

    own = folder / "untuned"
    if is_main():
        own.mkdir(exist_ok=True)
        write_vectors(own, open_dataset(data), TINY_WIDTH)
    barrier()
    return own


def straight_and_cut(folder: Path, data: str) -> dict[str, Any]:
    """One run straight through, and one that dies between checkpoints (after step 3) and is called again.

    With wide batches, whose cache of text states is then part of what a run must take up again.
    """
    from lsvcr.training.align import align

    vectors = str(untuned_vectors(folder, data))
    wide = {"wide_titles": 4, "taste_texts": 6, "head_start_taste_steps": 2, "head_start_vectors": vectors}
    align(settings(data, folder / "straight", **wide))
    undo = stop_before(3)
    with suppress(Stopped):
        align(settings(data, folder / "cut", **wide))
    undo()
    left = sorted(path.name for path in (folder / "cut").iterdir())
    align(settings(data, folder / "cut", **wide))
    return {"left_by_the_killed": left}


def flip_a_byte(file: Path, place: int = -100) -> None:
    """Damage a file as a bad disk does, in place."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    with file.open("r+b") as stream:  # the same inode, which other folders may share
        stream.write(content)


def damaged_and_full(folder: Path, data: str) -> dict[str, Any]:
    """Runs whose newest checkpoint is damaged, or whose disk is full, called again; as `straight` but for those."""
    import logging

    from safetensors import SafetensorError

    from lsvcr.training import align_state
    from lsvcr.training.align import align
    from lsvcr.utils.errors import UserError

    wide = {"wide_titles": 4, "taste_texts": 6, "head_start_taste_steps": 2}
    wide["head_start_vectors"] = str(folder / "untuned")

    def refused(name: str, **changes: Any) -> str:
        try:
            align(settings(data, folder / name, **wide, **changes))
        except UserError as error:
            return str(error)
        return ""

    # Checkpoints after every step, validations as before; dies when 4 steps are done.
    undo = stop_before(4)
    for name, limit in (("kept", 3), ("alone", 0)):
        with suppress(Stopped):
            align(settings(data, folder / name, **wide, save_steps=1, eval_steps=2, save_total_limit=limit))
    undo()
    found: dict[str, Any] = {"kept": sorted(path.name for path in (folder / "kept").glob("step-*"))}
    for name in ("kept", "alone"):
        flip_a_byte(folder / name / "last" / "trainer.safetensors")
    found["damaged_alone"] = refused("alone")
    told: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lsvcr").addHandler(listener)
    found["damaged_kept"] = refused("kept", save_total_limit=3, eval_steps=2, save_steps=1)
    found["told"] = [line for line in told if "damaged" in line]
    found["kept_in_the_end"] = sorted(path.name for path in (folder / "kept").glob("step-*"))

    real, writes = align_state.save_file, []

    def full(tensors: Any, path: Any) -> None:
        writes.append(path)
        if len(writes) == 2:  # trainer.safetensors of the second checkpoint
            Path(path).write_bytes(b"half of it")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        real(tensors, path)

    align_state.save_file = full  # type: ignore[assignment]
    found["full"] = refused("full")
    align_state.save_file = real
    found["left_by_the_full"] = sorted(path.name for path in (folder / "full").iterdir())
    found["full_again"] = refused("full")
    return found


def best_alone(folder: Path, data: str) -> dict[str, Any]:
    """What a run says of a folder with best/ and nothing to go on from: of itself, or of something else."""
    from lsvcr.training.align import align
    from lsvcr.utils.errors import UserError

    run = folder / "best_alone"
    shutil.copytree(folder / "plain" / "best", run / "best")
    manifest = run / "best" / "manifest.json"
    own = json.loads(manifest.read_text())

    def refused(content: dict[str, Any], **changes: Any) -> str:
        manifest.write_text(json.dumps(content))
        try:
            align(settings(data, run, **changes))
        except UserError as error:
            return str(error)
        return ""

    converted = {name: value for name, value in own.items() if name != "processes"}
    told = [refused({**own, "kind": "stage-two"}), refused(own, lora_r=4), refused(converted)]
    stood = not (run / "last").exists() and (run / "best" / "sr.safetensors").exists()
    return {"best_of_others": told, "best_stood": stood, "best_of_its_own": refused(own)}


def first_gradients(folder: Path, data: str) -> dict[str, Any]:
    """Losses and averaged gradients of one micro-batch of 6 samples, fp32, dropout off.

    The joined batch is 3 Rec samples and behind them 3 CommRank samples: of two processes each has one task only.
    """
    from deepspeed.utils import safe_get_full_grad

    from lsvcr.data.store import open_dataset
    from lsvcr.llm.aligned import draw_positions
    from lsvcr.training.align_build import build, parameter_groups
    from lsvcr.training.align_state import trainable
    from lsvcr.training.engine import process_group, read_config, start_engine
    from lsvcr.training.wide import wide_batches
    from lsvcr.utils.distributed import rank, reduce_sum, world_size

    batch = 6 // world_size()
    own = settings(
        data, folder, bf16=False, text_token_budget=200, wide_titles=4, taste_texts=9, wide_samples=2,
        head_start_vectors=str(untuned_vectors(folder, data)), **NO_DROPOUT,
    )  # fmt: skip
    with process_group() as device:
        parts = build(own, open_dataset(data))
        # LoRA's B is zero at first, and A would have no gradient.
        generator = torch.Generator().manual_seed(3)
        for name, parameter in parts.model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1, generator=generator)
        engine = start_engine(
            parts.model, parameter_groups(parts.model, own), read_config(own.deepspeed, bf16=False),
            weight_decay=0.0, micro_batch=batch, accumulation=1, max_grad_norm=0.0,
        )  # fmt: skip
        engine.train()
        joined = [parts.stream[position] for position in range(40)]
        # CommRank's with the longest comment histories: an answer from one entry asks nothing of its question.
        joined.sort(key=lambda sample: (sample.row % 2, sample.row % 2 * len(sample.comments)))
        joined = joined[:3] + joined[-3:]
        mine = parts.collator(joined[rank() * batch : (rank() + 1) * batch])
        wide = wide_batches(own, open_dataset(data), parts, device)
        assert wide is not None
        before = [wide.cache.videos.clone(), wide.cache.comments.clone()]
        positions = draw_positions(mine, (4, 4), own.max_position, 0, 0)
        parts_read = wide.batches(0)
        losses = engine(mine, positions, parts_read, wide.cache)
        engine.backward(losses["loss"])
        del losses["directions"]
        means = {name: float(reduce_sum(value.detach()) / world_size()) for name, value in losses.items()}
        gradients = {name: safe_get_full_grad(p).clone() for name, p in trainable(engine.module).items()}
    return {
        "losses": means,
        "gradients": gradients,
        "texts": len(mine.texts),
        "tasks": mine.is_rec.tolist(),
        "codes": {code for part in parts_read for code in part.codes.tolist()},
        "cache": [wide.cache.videos, wide.cache.comments],
        "read": [
            int((now != then).any(dim=1).sum())
            for now, then in zip((wide.cache.videos, wide.cache.comments), before, strict=True)
        ],
    }


CONTRAST = {
    "bf16": False, "max_steps": 2, "save_steps": 1, "logging_steps": 1, "text_token_budget": 200, **NO_DROPOUT,
}  # fmt: skip


def contrast_runs(folder: Path, data: str) -> None:
    """Two steps of four samples that are compared with one another, cut in several ways; random positions on."""
    from lsvcr.training.align import align
    from lsvcr.utils.distributed import world_size

    for batch in (4, 2, 1):
        if batch * world_size() <= 4:
            steps = 4 // batch // world_size()
            align(
                settings(
                    data, folder / f"contrast-{batch}", per_device_train_batch_size=batch,
                    gradient_accumulation_steps=steps, contrast_batch=4, **CONTRAST,
                )
            )  # fmt: skip


def cut_anew(folder: Path, data: str) -> str:
    """The same two steps, the second in other micro-steps than the first; what is said of one that compares fewer."""
    from lsvcr.training.align import align
    from lsvcr.utils.errors import UserError

    run = folder / "contrast-anew"
    undo = stop_before(1)
    with suppress(Stopped):
        align(settings(data, run, per_device_train_batch_size=4, **CONTRAST))
    undo()
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **CONTRAST}
    said = ""
    try:
        align(settings(data, run, **halves))
    except UserError as error:
        said = str(error)
    align(settings(data, run, contrast_batch=4, **halves))
    return said


def two_process_runs(folder: Path, data: str) -> dict[str, Any]:
    """What takes two processes to show."""
    contrast_runs(folder, data)
    return {**first_gradients(folder, data), **straight_and_cut(folder, data)}


def single_process_runs(folder: Path, data: str) -> dict[str, Any]:
    """Everything that one process can show, in one process: DeepSpeed takes seconds to import."""
    from lsvcr.training.align import align
    from lsvcr.utils.errors import UserError

    contrast_runs(folder, data)
    found: dict[str, Any] = {**first_gradients(folder, data), **straight_and_cut(folder, data)}
    found |= damaged_and_full(folder, data)
    found["other_contrast"] = cut_anew(folder, data)

    def refused(**changes: Any) -> str:
        try:
            align(settings(data, folder / "plain", **changes))
        except UserError as error:
            return str(error)
        return ""

    with mock.patch("lsvcr.training.align.warn_if_tight") as warn:
        align(settings(data, folder / "plain"))
    found["estimated"] = warn.call_args.args[1:]
    found["other_settings"] = refused(learning_rate=1e-2, lora_r=4)
    found["other_batch"] = refused(per_device_train_batch_size=4)
    found["free_settings"] = refused(logging_steps=1, text_token_budget=99, save_steps=7)
    found["missing_config"] = refused(deepspeed="config/nowhere.json")
    found["wide_below_zero"] = refused(taste_texts=-1)
    found["wide_without_vectors"] = refused(wide_titles=4, resume=False)
    found["uneven_contrast"] = refused(contrast_batch=6, gradient_accumulation_steps=2)
    found["one_to_contrast"] = refused(per_device_train_batch_size=1, model_name_or_path="nowhere")
    found["too_long_histories"] = refused(max_phis_len=60)

    found |= best_alone(folder, data)

    # Accumulation: two micro-batches of 2 are one of 4, for the LM loss, which has no in-batch negatives.
    alone = {"rec_loss_weight": 0.0, "contrast_loss_weight": 0.0, "bf16": False, "max_steps": 2, **NO_DROPOUT}
    align(settings(data, folder / "whole", per_device_train_batch_size=4, **alone))
    align(settings(data, folder / "halves", gradient_accumulation_steps=2, **alone))

    # Learning, without LoRA and with the last checkpoint kept.
    align(settings(data, folder / "heads_only", lora=False, load_best_model_at_end=False, max_steps=3))
    said = logging.getLogger("lsvcr.training.align")
    said.addHandler(own := Kept())
    align(
        settings(
            data, folder / "learns", max_steps=22, per_device_train_batch_size=8, learning_rate=3e-3, bf16=False,
            save_strategy="no", logging_steps=1, lr_scheduler_type="constant", **NO_DROPOUT,
        )
    )  # fmt: skip
    said.removeHandler(own)
    found["learns_said"] = own.lines
    align(settings(data, folder / "heads_only", lora=True, max_steps=2, resume=False))

    with redirect_stdout(io.StringIO()) as told:
        align(settings(data, folder / "dry", dry_run=True, gradient_accumulation_steps=2, contrast_batch=4))
    found["dry"] = told.getvalue()
    return found
