"""What a run of HLLM with both LLMs in training is made of: texts, LLMs, model, evaluation; and how one is restored."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lsvcr.data.item_texts import item_fields
from lsvcr.data.rank import RankBatch, RankData
from lsvcr.data.rank_sequences import SequenceData
from lsvcr.data.store import Dataset
from lsvcr.evaluation.evaluator import BLOCK
from lsvcr.evaluation.metrics import parse_metric
from lsvcr.llm.families import drop_vocabulary, fingerprint
from lsvcr.llm.hllm import HllmHeads, HllmModel
from lsvcr.llm.item_encoder import encode_ends
from lsvcr.llm.item_tokens import TokenTable, item_tokens
from lsvcr.llm.loading import fetch_llm, hidden_size, load_llm
from lsvcr.llm.lora import add_lora
from lsvcr.llm.recompute import enable_checkpointing
from lsvcr.models import checkpoint
from lsvcr.schema import HLLM, SR_WEIGHTS_FILE, Split, Task
from lsvcr.settings import HllmSettings
from lsvcr.settings.bounds import check_bounds
from lsvcr.training.align_build import CPU_BUDGET, GPU_BUDGET
from lsvcr.training.align_state import trainable
from lsvcr.training.engine_parts import (
    ONE_BATCH,
    is_cut,
    loading_in_parts,
    set_parameter,
    shape,
    whole_while_used,
)
from lsvcr.training.rank_setup import check_dataset, metric_name, recorded_settings
from lsvcr.utils.distributed import rank, world_size
from lsvcr.utils.errors import UserError
from lsvcr.utils.precision import compute_dtype
from lsvcr.utils.seeding import seed_everything

MODEL = "hllm_full"
"""`model` in the manifests."""

ITEM_LLM, USER_LLM = "item_llm_fingerprint", "user_llm_fingerprint"
"""In the manifests, see `families.fingerprint`."""

HEADS = "heads."
"""Prefix of the heads' parameters and buffers."""

_INIT_STREAM = 52
_STANDARD_TEXTS = 512
"""Texts that the statistics of the item LLM's states are taken from."""


@dataclass
class HllmSetup:
    """Both LLMs on a dataset, to be trained or measured.

    Attributes:
        settings: as given, or as the manifest has them.
        dataset: open.
        model: on the CPU at first.
        llms: fingerprints of the untuned LLMs, by their names in the manifest.
        fields: columns of the videos that the item LLM reads.
    """

    settings: HllmSettings
    dataset: Dataset
    model: HllmModel
    llms: dict[str, str]
    fields: list[str]

    @property
    def task(self) -> Task:
        """It recommends videos."""
        return Task.REC

    def data(self, split: Split) -> RankData:
        """Evaluation batches of a split."""
        return RankData(self.dataset, self.task, split, max_videos=self.settings.max_his, with_comments=False)

    def rows(self) -> SequenceData:
        """Training rows: the latest `max_his` videos of every user that training may know of.

        Raises:
            UserError: there are none.
        """
        rows = SequenceData(self.dataset, self.settings.max_his, share="batch")
        if not len(rows):
            raise UserError(
                f"{self.dataset.root} has no user with two liked videos in training; prepare it from more data"
            )
        return rows

    def about(self, processes: int) -> dict[str, Any]:
        """The part of every manifest that says where the weights come from."""
        return {
            "kind": HLLM,
            "model": MODEL,
            "task": self.task.value,
            "settings": asdict(self.settings),
            "seed": self.settings.seed,
            "data_hash": self.dataset.data_hash,
            "processes": processes,
            "item_fields": self.fields,
            **self.llms,
        }

    def identity(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Which LLMs they are."""
        return {name: about[name] for name in self.llms}


def check_settings(settings: HllmSettings) -> None:
    """Raise `UserError` for values that no field type can rule out."""
    check_bounds(settings, "save_steps")
    if settings.max_steps <= 0 and settings.num_train_epochs <= 0:
        raise UserError("nothing to train: give --num_train_epochs or --max_steps above 0")
    parse_metric(metric_name(settings))


def check_negatives(settings: HllmSettings, world: int) -> None:
    """Raise `UserError` where the targets of a micro-step of `world` processes have no negatives: those of one user."""
    if settings.per_device_train_batch_size * world == 1 and not settings.neg_video_num:
        raise UserError(
            "a micro-step of one user has no negatives, so that nothing would be learned: give "
            "--per_device_train_batch_size 2 or more, or --neg_video_num, such as 512"
        )


def build(settings: HllmSettings, dataset: Dataset, config: Mapping[str, Any] | None = None) -> HllmSetup:
    """Load both LLMs and build the model; the same on every process.

    Args:
        settings: of the run.
        dataset: whose texts are read.
        config: DeepSpeed's, from `engine.read_config`, which may have the LLMs cut among the processes; None = they
            stay whole.

    Raises:
        UserError: settings, data and LLMs do not fit one another.
    """
    dtype = compute_dtype(settings.bf16)
    names = (settings.model_name_or_path, settings.user_model_name_or_path or settings.model_name_or_path)
    for name in names:
        fetch_llm(name, dtype)
    with loading_in_parts(config, settings.per_device_train_batch_size, settings.gradient_accumulation_steps):
        item_llm, tokenizer = load_llm(names[0], dtype=dtype, llm_layers=settings.llm_layers)
        user_llm, _ = load_llm(names[1], dtype=dtype, llm_layers=settings.user_layers)
    _check_windows(settings, item_llm, user_llm)
    fields = item_fields(dataset, settings.item_fields)
    texts = item_tokens(tokenizer, dataset, fields, settings.max_text_length)
    pad_id = int(tokenizer.pad_token_id)
    budget = settings.text_token_budget or (GPU_BUDGET if torch.cuda.is_available() else CPU_BUDGET)
    sizes, llms = [], {}
    for name, llm in ((ITEM_LLM, item_llm), (USER_LLM, user_llm)):
        with whole_while_used(llm):
            llms[name] = fingerprint(llm)
            sizes.append(_embedding_size(llm))
    drop_vocabulary(item_llm, reads=True)
    drop_vocabulary(user_llm, reads=False)
    seed_everything(settings.seed, _INIT_STREAM)
    heads = HllmHeads(
        hidden_size(item_llm), hidden_size(user_llm), settings.item_emb_token_n, (sizes[0], sizes[1])
    )
    some = _some_texts(texts)
    with torch.no_grad(), whole_while_used(item_llm):
        tokens = heads.learned_tokens().detach()
        heads.standardise(encode_ends(item_llm, texts.take(some), tokens, pad_id=pad_id, budget=budget))
    model = HllmModel(
        _trained(item_llm, settings, frozen=settings.freeze_item_llm),
        _trained(user_llm, settings),
        heads,
        texts,
        pad_id=pad_id,
        budget=ONE_BATCH if is_cut(config) else budget,
        reading_budget=budget,
    )
    return HllmSetup(settings, dataset, model, llms, fields)


def parameter_groups(model: HllmModel, settings: HllmSettings) -> list[dict[str, Any]]:
    """Two groups with their peak rates: the LLMs, and the heads."""
    rates = (settings.learning_rate, settings.head_learning_rate or settings.learning_rate)
    parts: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in trainable(model).items():
        parts[name.startswith(HEADS)].append(parameter)
    groups = [
        {"params": parts[is_head], "lr": rate, "initial_lr": rate}
        for is_head, rate in zip((False, True), rates, strict=True)
    ]
    return [group for group in groups if group["params"]]


def weights_of(model: HllmModel, master: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a checkpoint keeps: all trained parameters (`master`, by name), and the heads' buffers."""
    buffers = {f"{HEADS}{name}": value.float() for name, value in model.heads.named_buffers()}
    return {**master, **buffers}


def load_weights(model: HllmModel, tensors: Mapping[str, Tensor], source: str) -> None:
    """Put what `weights_of` gave into a model, cut among the processes or whole.

    Raises:
        UserError: lists what is missing, unexpected or of another shape; nothing has changed then.
    """
    parameters = trainable(model)
    buffers = {f"{HEADS}{name}": value for name, value in model.heads.named_buffers()}
    wanted = {name: shape(parameter) for name, parameter in parameters.items()}
    wanted |= {name: buffer.shape for name, buffer in buffers.items()}
    given = {name: value.shape for name, value in tensors.items()}
    if wanted != given:
        names = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise UserError(
            f"{source} does not fit this model: {len(names)} tensors are missing, unexpected or of another shape, such "
            f"as {', '.join(names[:3])}; use the settings it was trained with"
        )
    for name, value in tensors.items():
        if name in parameters:
            set_parameter(parameters[name], value.to(parameters[name].device))
        else:
            buffers[name].copy_(value)


def restore(folder: Path, dataset: Dataset) -> tuple[HllmSetup, dict[str, Any]]:
    """The model of a checkpoint folder, and its manifest.

    Raises:
        UserError: no such checkpoint, another dataset, or other LLMs than those it was trained on.
    """
    weights = checkpoint.load(folder)
    manifest = weights.manifest
    check_dataset(folder, manifest, dataset)
    settings = recorded_settings(HllmSettings, manifest)
    setup = build(settings, dataset)
    for name, what in ((ITEM_LLM, "item"), (USER_LLM, "user")):
        if manifest[name] != setup.llms[name]:
            raise UserError(
                f"{folder} was trained on another {what} LLM than what is now found as {settings.model_name_or_path!r} "
                f"(user LLM: {settings.user_model_name_or_path!r}; empty = the same): put that one back"
            )
    # As the engine kept them, in which the run was tested.
    setup.model.heads.to(compute_dtype(settings.bf16))
    load_weights(setup.model, weights.tensors, str(folder / SR_WEIGHTS_FILE))
    setup.model.eval()
    return setup, manifest


class CutScorer:
    """`HllmModel` as a recommender where its weights are cut among the processes: users are all read when item vectors
    are asked for, equally many on every process, though not all have equally many rows to rank.

    Args:
        model: in evaluation mode.
        data: of the rows that will be ranked.
    """

    def __init__(self, model: HllmModel, data: RankData) -> None:
        self._model, self._data = model, data
        self._users: dict[int, Tensor] = {}

    def item_vectors(self) -> Tensor:
        """As the model's; every process must call it."""
        items = self._model.item_vectors()
        blocks = range(0, len(self._data), BLOCK)
        mine = blocks[rank() :: world_size()]
        turns = -(-len(blocks) // world_size())
        for start in [*mine, *[0] * (turns - len(mine))]:
            rows = np.arange(start, min(start + BLOCK, len(self._data)))
            vectors = self._model.user_vectors(self._data.evaluation(rows).to(items.device))
            self._users.update(zip(rows.tolist(), vectors, strict=True))
        return items

    def user_vectors(self, batch: RankBatch) -> Tensor:
        """(B, d) float32, of rows of this process."""
        return torch.stack([self._users[row] for row in batch.rows.tolist()])


def _trained(llm: Any, settings: HllmSettings, frozen: bool = False) -> Any:
    if frozen:
        llm.requires_grad_(False)
        return llm
    if settings.lora_r:
        llm = add_lora(llm, settings.lora_r, settings.lora_alpha, settings.lora_dropout)
    if settings.gradient_checkpointing:
        enable_checkpointing(llm, settings.recompute)
    return llm


def _check_windows(settings: HllmSettings, item_llm: Any, user_llm: Any) -> None:
    """Raise `UserError` where an LLM cannot read as much at once as the settings ask for."""
    for name, llm, wanted in (
        ("max_text_length", item_llm, settings.max_text_length + settings.item_emb_token_n),
        ("max_his", user_llm, settings.max_his),
    ):
        window = int(getattr(llm.config.get_text_config(), "max_position_embeddings", 0) or 0)
        if window and wanted > window:
            raise UserError(f"--{name} {getattr(settings, name)}: the LLM reads {window} at once; give less")


@torch.no_grad()
def _embedding_size(llm: Any) -> float:
    """Root mean square of token embeddings from all over the vocabulary."""
    embedding = llm.get_input_embeddings()
    rows = shape(embedding.weight)[0]
    ids = torch.linspace(0, rows - 1, _STANDARD_TEXTS, device=next(embedding.parameters()).device).long()
    return float(embedding(ids).float().pow(2).mean().sqrt())


def _some_texts(texts: TokenTable) -> np.ndarray:
    """At most `_STANDARD_TEXTS` of the videos that have a text, evenly spread.

    Raises:
        UserError: fewer than two have one.
    """
    told = np.flatnonzero(texts.lengths)
    if len(told) < 2:
        raise UserError("fewer than two videos have any text: name other columns with --item_fields")
    return told[np.unique(np.arange(_STANDARD_TEXTS) * len(told) // _STANDARD_TEXTS)]
