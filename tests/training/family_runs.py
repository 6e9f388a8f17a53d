"""Stage one with every family of LLM in one process, for `test_align_families.py`; started by torchrun.

    torchrun --nproc_per_node=1 tests/training/family_runs.py FOLDER DATASET

DeepSpeed takes seconds to import, so the families share a process and its group. What each run found goes to
`found.json`, by family.
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from safetensors.torch import load_file

import train
from lsvcr.data.text_bank import comment_code, video_code
from lsvcr.llm.lora import delta_norm
from lsvcr.settings import EmbedSettings
from lsvcr.training import align as stage_one
from lsvcr.training.embedder import checkpoint_folder, load_embedder
from lsvcr.training.engine import process_group
from lsvcr.utils.logging import quiet_third_party
from tests.llm.test_families_matrix import FAMILIES, model_folder

STEPS = 3
FLAGS = {
    "hidden": 16, "inner": 32, "text_width": 16, "max_phis_len": 3, "max_chis_len": 3, "max_source_length": 440,
    "max_text_length": 24, "max_target_length": 24, "per_device_train_batch_size": 2, "eval_pool": 4,
    "logging_steps": 1, "max_steps": STEPS, "learning_rate": 3e-3, "bf16": False, "report_to": "none",
}  # fmt: skip


def vectors_of(model: Any, tokenizer_ids: list[list[int]]) -> torch.Tensor:
    """Text vectors (N, e) of a stage-one model as it stands in memory."""
    training = model.training
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model.heads.head(model.pooled(tokenizer_ids))
    model.train(training)
    return found


def run_family(name: str, folder: Path, data: str) -> dict[str, Any]:
    """Train through train.py's own `main`, then read what it saved as `lsvcr embed` does."""
    llm = model_folder(FAMILIES[name], folder / name / "model")
    run = folder / name / "run"
    flags = {**FLAGS, "model_name_or_path": llm, "data_path": data, "output_dir": str(run)}
    codes = [*map(video_code, (1, 2, 3)), *map(comment_code, (1, 2))]
    seen: dict[str, Any] = {}

    class Watched(stage_one.AlignTrainer):
        """Keeps the vectors of some texts before and after training."""

        def _train(self, start: int, window: Any) -> Path:
            model = self._engine.module
            by_code = self._parts.collator.bank.ids(codes)
            seen["texts"] = self._parts.collator.bank.texts(codes)
            ids = [by_code[code] for code in codes]
            seen["zero"] = vectors_of(model, ids)
            done = super()._train(start, window)
            seen["trained"], seen["delta"] = vectors_of(model, ids), delta_norm(model.llm)
            seen["stage"] = self._engine.zero_optimization_stage()
            return done

    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    with (
        mock.patch.object(stage_one, "AlignTrainer", Watched),
        mock.patch.object(sys, "argv", ["train.py", *words]),
    ):
        train.main()
    saved = load_embedder(EmbedSettings(bf16=False), checkpoint_folder(str(run)))
    reloaded = saved.vectors(saved.ids(seen["texts"]))[0]
    weights = load_file(run / "best" / "adapter" / "adapter_model.safetensors")
    return {
        "stage": seen["stage"],
        "delta": seen["delta"],
        "moved": float((seen["trained"] - seen["zero"]).abs().max()),
        "reloaded": float((seen["trained"] - reloaded).abs().max()),
        "unmoved": [key for key, value in weights.items() if ".lora_B." in key and not value.any()],
        "adapted": sorted({key.split(".")[-3] for key in weights}),
        "steps": json.loads((run / "last" / "trainer.json").read_text())["step"],
    }


def main() -> None:
    """All families, one after the other."""
    folder, data = Path(sys.argv[1]), sys.argv[2]
    quiet_third_party()
    torch.set_num_threads(1)
    with process_group():
        assert dist.is_torchelastic_launched()
        found = {name: run_family(name, folder, data) for name in FAMILIES}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
