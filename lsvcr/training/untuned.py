"""The untuned LLM's vectors of all texts, which stage one's head start and wide batches begin with."""

from pathlib import Path

import numpy as np
import torch

from lsvcr.data.store import Dataset
from lsvcr.data.vectors import described, load_embeddings
from lsvcr.schema import COMMENT_FULL_EMBEDDINGS_FILE, VIDEO_FULL_EMBEDDINGS_FILE
from lsvcr.settings import AlignSettings
from lsvcr.utils.errors import UserError


def untuned_states(dataset: Dataset, settings: AlignSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled states of titles and comments, (n + 1, h) each with row 0 zeros, memory-mapped.

    Raises:
        UserError: they are missing or come from another LLM, dataset or number of layers.
    """
    folder = Path(settings.head_start_vectors or settings.data_path)
    found = []
    for name, rows in (
        (VIDEO_FULL_EMBEDDINGS_FILE, dataset.n_videos + 1),
        (COMMENT_FULL_EMBEDDINGS_FILE, dataset.n_comments + 1),
    ):
        file = folder / name
        made = (
            f"lsvcr embed --checkpoint none --model_name_or_path {settings.model_name_or_path} "
            f"--llm_layers {settings.llm_layers} --data_path {settings.data_path} --output_dir {folder}"
        )
        if not file.is_file():
            raise UserError(f"head start, --wide_titles and --taste_texts need {file}: make it with `{made}`")
        _check_origin(file, settings, made)
        load_embeddings(file, name, rows, dataset.data_hash)
        found.append(torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False)))
    return found[0], found[1]


def _check_origin(file: Path, settings: AlignSettings, made: str) -> None:
    about = described(file) or {}
    if about.get("kind") == "tuned":
        raise UserError(f"{file} was made by a tuned LLM; stage one wants the untuned one's: run `{made}`")
    if settings.llm_layers and about.get("llm_layers", settings.llm_layers) != settings.llm_layers:
        layers = f"the first {settings.llm_layers} layers of the untuned LLM"
        raise UserError(f"{file} was not made by {layers}: run `{made}`")
