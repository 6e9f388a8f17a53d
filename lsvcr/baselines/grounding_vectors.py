"""Vectors of titles and of generated texts, as BIGRec has them: the base LLM's last state at the last token.

One encoder serves both; the catalogue's vectors are kept beside the run, under a hash of LLM, precision and titles.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lsvcr.llm.encoder import hidden_states, last_pool, tokenize
from lsvcr.llm.families import backbone, fingerprint, hidden_size
from lsvcr.llm.loading import load_llm
from lsvcr.schema import MANIFEST_FILE
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import atomic_dir, load_npy, read_json, write_json
from lsvcr.utils.logging import progress

MAX_TOKENS = 256
"""A longer text is cut on the right."""

VECTORS_FILE = "vectors.npy"
_CPU_BUDGET, _GPU_BUDGET = 1024, 16384
_AT_ONCE = 1024
"""Titles whose distances are computed at once."""


class LastTokenEncoder:
    """The base LLM, without adapters.

    Args:
        name: of the LLM.
        llm_fingerprint: of the LLM the run was trained on.
        dtype: of the computation.
        budget: tokens of a batch, padding included; 0 = what suits the device.

    Raises:
        UserError: another LLM.
    """

    def __init__(self, name: str, llm_fingerprint: str, dtype: torch.dtype, budget: int = 0) -> None:
        model, self._tokenizer = load_llm(name, dtype=dtype)
        if fingerprint(model) != llm_fingerprint:
            raise UserError(f"{name} is another model than the one the run was trained on")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._backbone = backbone(model.to(device)).eval()
        self.width = hidden_size(model)
        self._budget = budget or (_CPU_BUDGET if device.type == "cpu" else _GPU_BUDGET)
        self._identity = f"{llm_fingerprint} {dtype} {MAX_TOKENS}"

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(n, h) float32, one row a text; none may be empty."""
        ids = tokenize(self._tokenizer, texts, MAX_TOKENS)
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        pad = int(self._tokenizer.pad_token_id)
        with progress(len(texts), "reading titles") as bar:
            for rows, states, mask in hidden_states(self._backbone, ids, pad_id=pad, budget=self._budget):
                vectors[rows] = last_pool(states, mask).cpu().numpy()
                bar.advance(len(rows))
        return vectors

    def digest(self, texts: Sequence[str]) -> str:
        """What the vectors of `texts` depend on."""
        return hashlib.sha256("\0".join([self._identity, *texts]).encode("utf-8")).hexdigest()

    def catalogue(self, titles: Sequence[str], folder: Path) -> np.ndarray:
        """Vectors of a catalogue's distinct titles, from `folder` where they were kept, else computed and kept."""
        digest = self.digest(titles)
        manifest = folder / MANIFEST_FILE
        if manifest.is_file() and read_json(manifest).get("digest") == digest:
            return load_npy(folder / VECTORS_FILE)
        vectors = self(titles)
        with atomic_dir(folder) as temporary:
            np.save(temporary / VECTORS_FILE, vectors)
            write_json(temporary / MANIFEST_FILE, {"kind": "title-vectors", "digest": digest})
        return vectors


def distances(texts: np.ndarray, titles: np.ndarray) -> np.ndarray:
    """L2 distances (B, h), (T, h) -> (B, T) float64; exactly 0 for equal vectors."""
    left = torch.from_numpy(np.asarray(texts, dtype=np.float64))
    parts = [
        torch.cdist(
            left,
            torch.from_numpy(np.asarray(titles[start : start + _AT_ONCE], dtype=np.float64)),
            # The shortcut through products loses the digits that tell near titles apart.
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        for start in range(0, len(titles), _AT_ONCE)
    ]
    return torch.cat(parts, dim=1).numpy()


def cosines(texts: np.ndarray, titles: np.ndarray) -> np.ndarray:
    """Cosines (B, h), (T, h) -> (B, T) float64; 0 for a vector of length 0."""
    left, right = (_unit(np.asarray(side, dtype=np.float64)) for side in (texts, titles))
    return left @ right.T


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)
