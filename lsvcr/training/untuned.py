"""The untuned LLM's vectors of all texts, which stage one's head start and wide batches begin with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsvcr.data.store import Dataset
from lsvcr.data.vectors import described, load_embeddings
from lsvcr.schema import COMMENT_FULL_EMBEDDINGS_FILE, LLM_FINGERPRINT, VIDEO_FULL_EMBEDDINGS_FILE
from lsvcr.settings import AlignSettings
from lsvcr.utils.errors import UserError


def untuned_states(
    dataset: Dataset, settings: AlignSettings, llm: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled states of titles and comments, (n + 1, h) each with row 0 zeros, memory-mapped.

    Args:
        dataset: its folder (or `settings.head_start_vectors`) holds them.
        settings: of stage one.
        llm: what their description says if they are its LLM's, see `AlignParts.untuned`; what an older description,
            or none, leaves out is not compared.

    Raises:
        UserError: they are missing or come from another LLM, dataset, number of layers or width.
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
        width = load_embeddings(file, name, rows, dataset.data_hash).shape[1]
        _check_origin(file, {**(described(file) or {}), "width": width}, llm, made)
        found.append(torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False)))
    return found[0], found[1]


def _check_origin(file: Path, about: Mapping[str, Any], llm: Mapping[str, Any], made: str) -> None:
    if about.get("kind") == "tuned":
        raise UserError(f"{file} was made by a tuned LLM; stage one wants the untuned one's: run `{made}`")
    differing = [name for name, value in llm.items() if about.get(name, value) != value]
    if LLM_FINGERPRINT in differing:
        raise UserError(f"{file} was made by another LLM than stage one's: run `{made}`")
    if differing:
        told = ", ".join(f"{name} {about[name]} there, {llm[name]} here" for name in differing)
        raise UserError(f"{file} was not made by the untuned LLM as stage one has it ({told}): run `{made}`")
