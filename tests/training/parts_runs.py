"""Stage one under ZeRO-3 beside ZeRO-2, in two processes, for `test_align_parts.py`."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.training.align_runs import NO_DROPOUT, Stopped, settings, stop_before, untuned_vectors

ROOT = Path(__file__).parents[2]


def write_cut_configs(folder: Path) -> None:
    """The shipped configurations, but for the size below which weights stay whole: all of the tiny LLM's are."""
    for name in ("ds_z3_fp32.json", "ds_z3_bf16.json"):
        config = json.loads((ROOT / "config" / name).read_text())
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        (folder / name).write_text(json.dumps(config))


def loaded_in_parts(folder: Path) -> dict[str, Any]:
    """LLMs of two kinds of folder, cut as they are read: numbers held, and the difference to the whole one's states.

    And whether DeepSpeed compiled something on the way.
    """
    import deepspeed
    import torch

    from lsvcr.llm.families import backbone
    from lsvcr.llm.loading import load_llm
    from lsvcr.training.engine import process_group
    from lsvcr.training.engine_parts import loading_in_parts, whole_while_used
    from lsvcr.utils.distributed import barrier, is_main
    from tests.llm.test_families_matrix import FAMILIES, model_folder

    found: dict[str, Any] = {}
    with process_group():
        for family in ("qwen3", "chatglm"):
            if is_main():
                model_folder(FAMILIES[family], folder / family)
            barrier()
            name = str(folder / family) if FAMILIES[family] else model_folder(None, folder)
            whole = load_llm(name, dtype=torch.float32, llm_layers=1)[0]
            with loading_in_parts({"zero_optimization": {"stage": 3}}, 1, 1):
                cut = load_llm(name, dtype=torch.float32, llm_layers=1)[0]
            ids = torch.arange(5, 45)[None]
            with torch.no_grad(), whole_while_used(cut):
                states = [backbone(model)(input_ids=ids).last_hidden_state for model in (whole, cut)]
            held = sum(parameter.numel() for parameter in cut.parameters())
            found[family] = (held, float((states[0] - states[1]).abs().max()))
    return {"families": found, "compiled": deepspeed.comm.comm.cdb.shm_comm_op is not None}


def runs(folder: Path, data: str) -> dict[str, Any]:
    """All that two processes can show."""
    from lsvcr.settings import EmbedSettings
    from lsvcr.training import align as stage_one
    from lsvcr.training import align_build
    from lsvcr.training.embed import embed
    from lsvcr.utils.distributed import barrier, is_main

    vectors = str(untuned_vectors(folder, data))
    common = {
        **NO_DROPOUT, "bf16": False, "max_steps": 3, "save_steps": 1, "eval_steps": 3, "eval_pool": 2,
        "logging_steps": 1, "text_token_budget": 1 << 40, "gradient_checkpointing": True, "wide_titles": 4,
        "taste_texts": 6, "head_start_taste_steps": 2, "head_start_vectors": vectors,
    }  # fmt: skip
    if is_main():
        write_cut_configs(folder)
    barrier()
    z2, z3 = "config/ds_z2_fp32.json", str(folder / "ds_z3_fp32.json")
    found: dict[str, Any] = {"losses": {}, "held": [], "called": {}, **loaded_in_parts(folder)}
    real_step, real_load = stage_one.AlignTrainer._step, align_build.load_llm
    name = ""

    def step(self: Any, number: int, batches: Any, window: Any) -> None:
        real_step(self, number, batches, window)
        found["losses"].setdefault(name, []).append(window.last_loss)
        base = [p for n, p in self._engine.module.llm.named_parameters() if "lora" not in n]
        found["called"].setdefault(name, []).append(sum(p.numel() for p in base))

    def load(*words: Any, **flags: Any) -> Any:
        loaded = real_load(*words, **flags)
        weights = dict(loaded[0].named_parameters())
        pieces = sum(p.ds_tensor.numel() if hasattr(p, "ds_tensor") else p.numel() for p in weights.values())
        found["held"].append((sum(p.numel() for p in weights.values()), pieces))
        return loaded

    stage_one.AlignTrainer._step, align_build.load_llm = step, load
    for name, config in (("z2", z2), ("z3", z3)):
        stage_one.align(settings(data, folder / name, deepspeed=config, **common))
        embed(EmbedSettings(data_path=data, checkpoint=str(folder / name), bf16=False))
    name = "cut"
    undo = stop_before(2)
    with suppress(Stopped):
        stage_one.align(settings(data, folder / "cut", deepspeed=z3, **common))
    undo()
    if is_main():
        shutil.copytree(folder / "cut", folder / "changed")
    barrier()
    for name, config in (("cut", z3), ("changed", z2)):
        stage_one.align(settings(data, folder / name, deepspeed=config, **common))
    # Five samples on two processes: one has three batches, the other two. And bfloat16.
    name = "uneven"
    odd = {"tasks": "Rec", "eval_pool": 5, "per_device_eval_batch_size": 1, "max_steps": 1, "ddp_timeout": 60}
    half = str(folder / "ds_z3_bf16.json")
    stage_one.align(settings(data, folder / "uneven", deepspeed=half, bf16=True, **odd))
    return found
