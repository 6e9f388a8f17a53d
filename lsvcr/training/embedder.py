"""What turns texts into vectors once stage one is over: the LLM, its adapter and the embedding head."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import lsvcr
from lsvcr.llm.encoder import Pooling, encode_inference, tokenize
from lsvcr.llm.families import backbone, fingerprint, hidden_size, n_layers, unwrap
from lsvcr.llm.four_bits import in_four_bits, obstacle
from lsvcr.llm.loading import load_llm
from lsvcr.llm.lora import load_adapter
from lsvcr.models import checkpoint as checkpoints
from lsvcr.models.sr import EmbeddingHead
from lsvcr.schema import ADAPTER_DIR, BEST_DIR, LLM_FINGERPRINT, MANIFEST_FILE
from lsvcr.settings import EmbedSettings
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import sha256_file
from lsvcr.utils.logging import get_logger
from lsvcr.utils.precision import compute_dtype

NO_CHECKPOINT = "none"
STAGE_ONE_KIND = "stage-one"
HEAD_PREFIX = "head."
DEFAULT_TEXT_LENGTH = 64
"""Tokens of a text where neither the settings nor a checkpoint say how many; 0 in the settings leaves it to them."""
ITEM_TEXT_LENGTH = 256
"""The same for the texts of `--item_prompt`, as in HLLM's published code."""

_log = get_logger(__name__)


@dataclass(frozen=True)
class Embedder:
    """An LLM in evaluation mode, with or without the embedding head of stage one."""

    backbone: nn.Module
    tokenizer: transformers.PreTrainedTokenizerBase
    head: EmbeddingHead | None
    """Turns pooled states (h) into text vectors (e); None for an untuned LLM."""
    full_width: int
    """Width h of the LLM's own states."""
    max_text_length: int
    """Tokens of one text."""
    about: dict[str, Any]
    """Where it comes from, for the description of what it makes."""
    pooling: Pooling = "mean"
    """What of the states of a text's tokens is its vector."""

    @property
    def width(self) -> int:
        """Width of the main output: e with a head, h without."""
        return int(self.about["width"])

    @property
    def on_gpu(self) -> bool:
        """True if the LLM is on a GPU."""
        return next(self.backbone.parameters()).is_cuda

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts; none for an empty one."""
        return tokenize(self.tokenizer, texts, self.max_text_length)

    def lengths(self, texts: list[str]) -> list[int]:
        """Tokens of texts."""
        return list(map(len, self.ids(texts)))

    @torch.inference_mode()
    def vectors(self, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Encode texts as one batch.

        Args:
            ids: N texts of similar length, none empty.

        Returns:
            Text vectors (N, e) and the LLM's pooled states (N, h), float32; the same tensor without a head.
        """
        budget = len(ids) * max(map(len, ids))
        pooled = encode_inference(
            self.backbone,
            ids,
            pad_id=self.tokenizer.pad_token_id,
            budget=budget,
            pooling=self.pooling,
        )
        return (pooled if self.head is None else self.head(pooled)), pooled


def checkpoint_folder(name: str) -> Path | None:
    """The folder with the files of a stage-one checkpoint: a run folder stands for its best/. None for `none`.

    Raises:
        UserError: there is no finished checkpoint.
    """
    if name.lower() in (NO_CHECKPOINT, ""):
        return None
    path = Path(name)
    if not path.is_dir():
        raise UserError(f"--checkpoint {name}: no such folder; give a stage-one run folder, or none")
    if (path / BEST_DIR).is_dir():
        return path / BEST_DIR
    if not (path / MANIFEST_FILE).is_file():
        raise UserError(
            f"{path} holds no finished stage one (neither {BEST_DIR}/ nor {MANIFEST_FILE}): "
            "run bash scripts/run_lora.sh to its end"
        )
    return path


def load_embedder(settings: EmbedSettings, source: Path | None) -> Embedder:
    """The LLM on this process's device, tuned if `source` is the folder of a stage-one checkpoint.

    Raises:
        UserError: something does not load, or does not fit together.
    """
    dtype = compute_dtype(settings.bf16)
    if source is None:
        if not settings.model_name_or_path:
            raise UserError("name the LLM with --model_name_or_path, or a stage-one run with --checkpoint")
        loaded = load_llm(
            settings.model_name_or_path,
            dtype=dtype,
            llm_layers=settings.llm_layers,
            load_in_4bit=bool(settings.load_in_4bit),
        )
        return _embedder(settings, *loaded, head=None, parent=None, trained_length=0)
    tensors, manifest = checkpoints.load(source)
    _check_files(source, manifest)
    trained = _stage_one_settings(source, manifest)
    name = settings.model_name_or_path or trained["model_name_or_path"]
    model, tokenizer = load_llm(
        name,
        dtype=dtype,
        llm_layers=trained["llm_layers"],
        load_in_4bit=_in_four_bits(settings, bool(trained.get("load_in_4bit"))),
    )
    if manifest.get(LLM_FINGERPRINT) not in (None, fingerprint(model)):
        raise UserError(
            f"{name} is not the LLM that {source} was trained on, though its shape is the same: give that one "
            f"with --model_name_or_path (in stage one it was {trained['model_name_or_path']})"
        )
    head = _load_head(source, tensors, hidden_size(model))
    if (source / ADAPTER_DIR).is_dir():
        model = load_adapter(model, source / ADAPTER_DIR)
    elif trained.get("lora", True):
        raise UserError(f"{source} was trained with LoRA but has no {ADAPTER_DIR}/: take another checkpoint")
    length = int(trained.get("max_text_length", 0))
    if length and settings.max_text_length not in (0, length):
        _log.warning(
            "texts are cut at %d tokens, in stage one they were at %d (--max_text_length)",
            settings.max_text_length,
            length,
        )
    parent = sha256_file(source / MANIFEST_FILE)
    return _embedder(settings, model, tokenizer, head, parent, trained_length=length)


def _in_four_bits(settings: EmbedSettings, trained: bool) -> bool:
    """As asked for, else as in stage one where this machine can."""
    if settings.load_in_4bit is not None:
        return settings.load_in_4bit
    if trained and obstacle():
        _log.warning(
            "stage one kept the LLM in 4 bits, here it is read whole, which changes the vectors a little: %s",
            obstacle(),
        )
    return trained and not obstacle()


def _embedder(
    settings: EmbedSettings,
    model: nn.Module,
    tokenizer: transformers.PreTrainedTokenizerBase,
    head: EmbeddingHead | None,
    parent: str | None,
    trained_length: int,
) -> Embedder:
    device = _device()
    usual = DEFAULT_TEXT_LENGTH if settings.item_prompt == "none" else ITEM_TEXT_LENGTH
    length = settings.max_text_length or trained_length or usual
    about = {
        "kind": "untuned" if head is None else "tuned",
        "width": hidden_size(model) if head is None else head.outer.out_features,
        "llm": unwrap(model).name_or_path,
        LLM_FINGERPRINT: fingerprint(model),
        "llm_layers": n_layers(unwrap(model).config),
        "weights": _weights_digest({"llm": backbone(model), "head": head}),
        "parent": parent,
        "max_text_length": length,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {
            "lsvcr": lsvcr.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    return Embedder(
        # In 4 bits it is on its GPU already, and may not be moved.
        backbone=backbone((model if in_four_bits(model) else model.to(device)).eval()),
        tokenizer=tokenizer,
        head=None if head is None else head.to(device).eval(),
        full_width=hidden_size(model),
        max_text_length=length,
        about=about,
    )


def _weights_digest(modules: dict[str, nn.Module | None]) -> str:
    """A hash of names, shapes and 64 evenly spaced values of every parameter.

    Another training changes almost every value, so that few of them tell the weights apart, whatever folder they
    come from; hashing all would take minutes of a large LLM.
    """
    digest = hashlib.sha256()
    for part, module in modules.items():
        for name, weights in [] if module is None else sorted(module.named_parameters()):
            flat = weights.detach().reshape(-1)
            spaced = torch.linspace(0, max(0, len(flat) - 1), min(64, len(flat)), dtype=torch.float64)
            values = flat[spaced.long().to(flat.device)].float().cpu().numpy()
            digest.update(f"{part} {name} {tuple(weights.shape)}\n".encode() + values.tobytes())
    return digest.hexdigest()


def _stage_one_settings(source: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    settings = manifest.get("settings")
    if manifest.get("kind") != STAGE_ONE_KIND or not isinstance(settings, dict):
        raise UserError(f"{source} is not a stage-one checkpoint: give the output_dir of scripts/run_lora.sh")
    lacking = [field for field in ("model_name_or_path", "llm_layers") if field not in settings]
    if lacking:
        raise UserError(f"{source / MANIFEST_FILE} lacks the settings {', '.join(lacking)}: train again")
    return settings


def _check_files(source: Path, manifest: dict[str, Any]) -> None:
    """Adapter, head and manifest of a checkpoint are of one moment: their hashes are the manifest's."""
    for name, digest in manifest.get("files", {}).items():
        if not (source / name).is_file() or sha256_file(source / name) != digest:
            raise UserError(
                f"{source / name} is missing or has changed since stage one wrote it: train again"
            )


def _load_head(source: Path, tensors: dict[str, Tensor], llm_width: int) -> EmbeddingHead:
    own = checkpoints.under_prefix(HEAD_PREFIX, tensors)
    if "outer.weight" not in own:
        raise UserError(f"{source} has no embedding head: it is not a whole stage-one checkpoint")
    # float32 whatever the LLM's precision: the head is small, and so are differences between vectors.
    head = EmbeddingHead(llm_width, int(own["outer.weight"].shape[0]))
    checkpoints.load_into(head, own, source=f"the embedding head in {source}")
    return head


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
