"""What the tests of embedding share: settings, a stage-one checkpoint, counted LLM calls and other processes."""

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from lsvcr.llm.loading import TINY, load_llm
from lsvcr.llm.lora import add_lora, save_adapter
from lsvcr.models import checkpoint as checkpoints
from lsvcr.models.sr import EmbeddingHead
from lsvcr.schema import ADAPTER_DIR
from lsvcr.settings import AlignSettings, EmbedSettings
from lsvcr.training import embedder

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 16
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def settings(data, out="", checkpoint="none", **others):
    """Settings for the tiny LLM, or for the one of a checkpoint."""
    name = TINY if checkpoint == "none" else ""
    defaults = {"model_name_or_path": name, "bf16": False, "text_token_budget": 256}
    return EmbedSettings(
        data_path=str(data), output_dir=str(out), checkpoint=str(checkpoint), **{**defaults, **others}
    )


def write_checkpoint(folder, seed=3, **changed):
    """A stage-one checkpoint whose adapter and head are random but not zero; the first LLM layer only."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    model = add_lora(load_llm(TINY, dtype=torch.float32, llm_layers=1)[0], r=2, alpha=16, dropout=0.1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    save_adapter(model, folder / ADAPTER_DIR)
    head = checkpoints.with_prefix("head.", EmbeddingHead(32, WIDTH).state_dict())
    trained = asdict(AlignSettings(model_name_or_path=TINY, llm_layers=1))
    manifest = {"kind": "stage-one", "settings": trained, **changed}
    checkpoints.save_into(folder, {**head, "contrast.weight": torch.zeros(2, 2)}, manifest)


def names(folder):
    """Names of what a folder holds."""
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    """The files of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def count_texts(monkeypatch, stop_before=0):
    """A list of the token ids of every text the LLM reads from now on.

    Args:
        monkeypatch: the test's.
        stop_before: number of the batch before which the run is interrupted; 0 for never.
    """
    encoded, batches = [], []
    vectors = embedder.Embedder.vectors

    def counted(self, ids):
        batches.append(len(ids))
        if len(batches) == stop_before:
            raise KeyboardInterrupt
        encoded.extend(map(tuple, ids))
        return vectors(self, ids)

    monkeypatch.setattr(embedder.Embedder, "vectors", counted)
    return encoded


def start(script, tmp_path, *launcher):
    """Run Python lines in new processes."""
    path = tmp_path / "script.py"
    path.write_text(
        "from lsvcr.settings import EmbedSettings\nfrom lsvcr.training.embed import embed\n" + script
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *launcher, str(path)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
