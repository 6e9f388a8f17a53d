"""A stage-one run of the tiny LLM that was not trained but drawn, with its text vectors: made in seconds."""

from dataclasses import asdict
from pathlib import Path

import torch

from lsvcr.data.store import open_dataset
from lsvcr.llm.aligned import AlignedModel
from lsvcr.llm.lora import save_adapter
from lsvcr.models import checkpoint as checkpoints
from lsvcr.schema import ADAPTER_DIR, BEST_DIR, LLM_FINGERPRINT, STAGE_ONE
from lsvcr.settings import EmbedSettings
from lsvcr.training.align_build import AlignParts, build
from lsvcr.training.embed import embed
from tests.training.align_runs import settings


def write_aligned(
    data: Path, run: Path, seed: int = 3, vectors: bool = True, **changes: object
) -> AlignParts:
    """Write RUN/best of a model whose adapter and heads are random; returns what it was built of."""
    own = settings(str(data), run, bf16=False, seed=seed, eval_pool=2, **changes)
    parts = build(own, open_dataset(data))
    model: AlignedModel = parts.model.eval()
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    folder = run / BEST_DIR
    folder.mkdir(parents=True)
    save_adapter(model.llm, folder / ADAPTER_DIR)
    manifest = {
        "kind": STAGE_ONE,
        "settings": asdict(own),
        LLM_FINGERPRINT: parts.llm,
        "trained_parameters": 7,
    }
    checkpoints.save_into(folder, model.heads.state_dict(), manifest)
    if vectors:
        embed(EmbedSettings(data_path=str(data), checkpoint=str(run), bf16=False))
    return parts
