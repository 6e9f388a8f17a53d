"""What stage one's LLM makes of the prompts of a split: user vectors, read part by part, kept on disk.

Stage one teaches the LLM's user vector (its state at the last prompt token, through the contrast projection) to lie
where the SR model's user vector of the same sample lies, and the SR model's to lie near the text vector of the target
(behaviour, preference and recommendation contrast; all cosine). So the space of both is the SR model's, d numbers wide,
and the items in it are the projected text vectors, `SRModel.project` of the vectors of `lsvcr embed`. No loss compares
the LLM's user with an item: what the LLM is worth as a recommender is what comes through the SR model.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from lsvcr.data.align import AlignCollator
from lsvcr.data.align_samples import AlignSamples
from lsvcr.data.store import Dataset
from lsvcr.data.text_bank import TextBank
from lsvcr.data.vectors import described, load_embeddings
from lsvcr.llm.encoder import hidden_states, tokenize
from lsvcr.models import checkpoint as checkpoints
from lsvcr.nn.similarity import unit
from lsvcr.schema import COMMENT_EMBEDDINGS_FILE, MANIFEST_FILE, STAGE_ONE, VIDEO_EMBEDDINGS_FILE, Split, Task
from lsvcr.settings import AlignSettings, EmbedSettings, EvaluateLlmSettings
from lsvcr.training.align_build import prompt_builder
from lsvcr.training.embed import CPU_BUDGET, GPU_BUDGET
from lsvcr.training.embedder import checkpoint_folder, load_embedder
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import atomic_file, sha256_file, sha256_text
from lsvcr.utils.logging import get_logger, progress

PART_ROWS = 256
"""Rows of one part: what a kill can cost. Its prompts are sorted by length and read once each."""

_ADAPTER = "sr.adapter.weight"
_CONTRAST = ("contrast.weight", "contrast.bias")

_log = get_logger(__name__)


@dataclass(frozen=True)
class Reading:
    """What reading some rows took.

    Attributes:
        prompts: rows.
        distinct: different prompts among those of a part; each is read once.
        tokens: of these.
        seconds: in the LLM.
    """

    prompts: int = 0
    distinct: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def plus(self, other: "Reading") -> "Reading":
        """Both together."""
        return Reading(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Source:
    """A stage-one checkpoint, without its LLM.

    Attributes:
        folder: with the weights.
        trained: its settings.
        tensors: of SR model and heads, by name.
        digest: names the checkpoint, its adapter included.
    """

    folder: Path
    trained: AlignSettings
    tensors: Mapping[str, Tensor]
    digest: str


def open_source(run: str | Path, task: Task) -> Source:
    """Read a stage-one run, or its best/, that has learned `task`.

    Raises:
        UserError: it is none, is damaged, or was trained on the other task alone.
    """
    remedy = "give the output_dir of scripts/run_lora.sh, or of `lsvcr convert`"
    folder = checkpoint_folder(str(run)) if Path(run).is_dir() else None
    if folder is None:
        raise UserError(f"{run} is no folder of a stage-one run; {remedy}")
    tensors, manifest = checkpoints.load(folder)
    if manifest.get("kind") != STAGE_ONE:
        raise UserError(f"{folder} holds a {manifest.get('kind')} checkpoint, not one of stage one; {remedy}")
    known = {f.name for f in fields(AlignSettings)}
    trained = AlignSettings(**{k: v for k, v in manifest.get("settings", {}).items() if k in known})
    lacking = [name for name in (_ADAPTER, *_CONTRAST) if name not in tensors]
    if lacking:
        raise UserError(f"{folder} is no whole stage-one checkpoint: it has no {', '.join(lacking)}")
    if trained.tasks not in ("both", task.label, task.value):
        raise UserError(
            f"{folder} was trained on {trained.tasks} alone: its LLM knows nothing of --task {task.label}"
        )
    return Source(folder, trained, tensors, sha256_file(folder / MANIFEST_FILE))


def vector_file(source: Source, task: Task) -> Path:
    """Where the text vectors of a checkpoint's items lie, or should: beside it or, in a run, above it."""
    name = VIDEO_EMBEDDINGS_FILE if task is Task.REC else COMMENT_EMBEDDINGS_FILE
    above = source.folder.parent / name
    return above if above.is_file() and not (source.folder / name).is_file() else source.folder / name


def item_vectors(source: Source, dataset: Dataset, task: Task) -> Tensor:
    """Item vectors in the space of the LLM's users: videos (Rec) or comments, (N + 1, d) float32 of length 1.

    Raises:
        UserError: the checkpoint's text vectors are missing, or are of another checkpoint or dataset.
    """
    count = dataset.n_videos if task is Task.REC else dataset.n_comments
    file = vector_file(source, task)
    remedy = f"`lsvcr embed --checkpoint {source.folder} --data_path {dataset.root}`"
    if not file.is_file():
        raise UserError(
            f"{source.folder} has no {file.name}, the items for its LLM's users: make it with {remedy}"
        )
    texts = load_embeddings(file, file.name, count + 1, dataset.data_hash)
    if (described(file) or {}).get("parent") != source.digest:
        raise UserError(
            f"{file} was not made by the checkpoint {source.folder}: its vectors lie in another space; make them "
            f"again with {remedy}"
        )
    weight = source.tensors[_ADAPTER].float()  # (d, e)
    return unit(F.linear(torch.from_numpy(np.array(texts, dtype=np.float32)), weight))


class PromptReader:
    """Reads prompts with the tuned LLM.

    Args:
        source: the checkpoint.
        settings: of the command.
        dataset, task, split: whose prompts.

    Raises:
        UserError: the LLM does not load or is not the one of the checkpoint.
    """

    def __init__(
        self, source: Source, settings: EvaluateLlmSettings, dataset: Dataset, task: Task, split: Split
    ) -> None:
        chosen = EmbedSettings(
            checkpoint=str(source.folder),
            model_name_or_path=settings.model_name_or_path,
            bf16=settings.bf16,
        )
        trained = source.trained
        embedder = load_embedder(chosen, source.folder)
        self._llm, self._pad = embedder.backbone, int(embedder.tokenizer.pad_token_id)
        self._budget = settings.text_token_budget or (GPU_BUDGET if embedder.on_gpu else CPU_BUDGET)
        cut = partial(tokenize, embedder.tokenizer, max_tokens=trained.max_text_length)
        config: Any = self._llm.config
        builder = prompt_builder(trained, embedder.tokenizer, config.get_text_config())
        self._collator = AlignCollator(TextBank(dataset.titles(), dataset.contents(), cut), builder)
        # Nothing is trained here: a sample's history is all that its split lets a recommender see.
        self._samples = AlignSamples(
            dataset,
            split,
            [task],
            max_videos=trained.max_phis_len,
            max_comments=trained.max_chis_len,
            joint=False,
        )
        device = next(self._llm.parameters()).device
        self._weight, self._bias = (source.tensors[name].float().to(device) for name in _CONTRAST)

    @torch.inference_mode()
    def users(
        self, rows: np.ndarray, tell: Callable[[int], object] = lambda rows: None
    ) -> tuple[np.ndarray, Reading]:
        """User vectors of sample numbers (n,): (n, d) float32, and what that took; `tell` gets each batch's rows."""
        prompts = self._collator.prompts([self._samples.evaluation(int(row)) for row in rows])
        numbers: dict[tuple[int, ...], int] = {}
        place = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
        started = time.perf_counter()
        rows_of = np.bincount(place)
        vectors = self._read(list(numbers), lambda batch: tell(int(rows_of[batch].sum())))
        seconds = time.perf_counter() - started
        return vectors[place], Reading(len(rows), len(numbers), sum(map(len, numbers)), seconds)

    def _read(self, prompts: Sequence[Sequence[int]], tell: Callable[[np.ndarray], object]) -> np.ndarray:
        """(n, d) float32 in the order of `prompts`, which are read in batches of similar length; `tell` gets each."""
        found = np.empty((len(prompts), len(self._bias)), dtype=np.float32)
        for batch, states, mask in hidden_states(self._llm, prompts, pad_id=self._pad, budget=self._budget):
            last = mask.sum(dim=1) - 1
            chosen = states[torch.arange(len(last), device=last.device), last].float()
            found[batch] = F.linear(chosen, self._weight, self._bias).cpu().numpy()
            tell(batch)
        return found


def read_users(
    folder: Path, about: Mapping[str, Any], rows: np.ndarray, open_reader: Callable[[], PromptReader]
) -> tuple[np.ndarray, Reading]:
    """User vectors of `rows`, kept in `folder` or read now; a killed reading goes on behind its last part.

    Args:
        folder: gets a file a part.
        about: all that the vectors depend on; parts of anything else are read again.
        rows: (n,) int64 sample numbers.
        open_reader: called if something is left to read.

    Returns:
        (n, d) float32 and what the reading took, whenever it was done.

    Raises:
        UserError: a vector is not finite.
    """
    identity = sha256_text(json.dumps(dict(about), sort_keys=True))
    parts = [rows[start : start + PART_ROWS] for start in range(0, len(rows), PART_ROWS)]
    files = [folder / f"users-{number:05d}.safetensors" for number in range(len(parts))]
    known = [_load(file, identity, part) for file, part in zip(files, parts, strict=True)]
    done = sum(len(part) for part, found in zip(parts, known, strict=True) if found)
    if 0 < done < len(rows):
        _log.info("%s: %d of %d rows are read; going on", folder, done, len(rows))
    reader: PromptReader | None = None
    vectors, total = [], Reading()
    with progress(len(rows), "reading prompts") as bar:
        bar.start_at(done)
        for file, part, found in zip(files, parts, known, strict=True):
            if found is None:
                reader = reader or open_reader()
                found = reader.users(part, bar.advance)
                if not np.isfinite(found[0]).all():
                    raise UserError(
                        "the LLM's user vectors hold NaN or infinity: try --bf16 False, or an earlier checkpoint"
                    )
                _save(file, identity, part, *found)
            vectors.append(found[0])
            total = total.plus(found[1])
    return np.concatenate(vectors), total


def _save(file: Path, identity: str, rows: np.ndarray, vectors: np.ndarray, reading: Reading) -> None:
    about = {"identity": identity, "reading": json.dumps(asdict(reading))}
    with atomic_file(file) as temporary:
        save_file({"rows": rows, "vectors": np.ascontiguousarray(vectors)}, temporary, metadata=about)


def _load(file: Path, identity: str, rows: np.ndarray) -> tuple[np.ndarray, Reading] | None:
    """What `_save` wrote; None where there is nothing of this identity and these rows."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="numpy") as stream:
            about = stream.metadata() or {}
            if about.get("identity") != identity or not np.array_equal(stream.get_tensor("rows"), rows):
                return None
            return stream.get_tensor("vectors"), Reading(**json.loads(about["reading"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None  # damaged: read again
