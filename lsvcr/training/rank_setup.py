"""What a stage-two run is made of: dataset, text vectors, stage-one weights, model."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from lsvcr import __version__
from lsvcr.baselines.gpsd_settings import ClickSettings
from lsvcr.data.rank import RankData
from lsvcr.data.samplers import log_draw_probability
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.evaluation.metrics import parse_metric
from lsvcr.losses.ranking import gbce_beta
from lsvcr.models import checkpoint
from lsvcr.models.rank import RankModel
from lsvcr.models.rank_loss import SampledLoss
from lsvcr.models.sr import EmbeddingHead, SRModel
from lsvcr.nn.attention import INITIAL_STD
from lsvcr.schema import STAGE_ONE, STAGE_TWO, Split, Task
from lsvcr.settings import BaselineSettings, FittedSettings, RankSettings
from lsvcr.settings.bounds import check_bounds
from lsvcr.training.rank_freeze import freeze, frozen_groups
from lsvcr.training.rank_handover import Handover, StageOne, find_stage_one, hand_over, recorded
from lsvcr.training.rank_texts import TextTables, load_texts
from lsvcr.utils.errors import UserError
from lsvcr.utils.seeding import seed_everything

S = TypeVar("S", bound=RankSettings | FittedSettings | ClickSettings)

_INITIALISATION = 1
STANDARDISED_TEXTS = 1 << 14
"""Texts of each kind that a fresh embedding head's statistics are taken from."""


@dataclass
class Setup:
    """Everything that training and evaluation share.

    Attributes:
        settings: as given.
        task: parsed.
        dataset: open.
        parent: stage one's weights, or None.
        texts: frozen text vectors, or None without text.
        model: on the CPU.
        handover: what was taken from `parent`.
    """

    settings: RankSettings
    task: Task
    dataset: Dataset
    parent: StageOne | None
    texts: TextTables | None
    model: RankModel
    handover: Handover | None = None

    def data(self, split: Split) -> RankData:
        """Batches of a split with the settings' history lengths."""
        return RankData(
            self.dataset,
            self.task,
            split,
            max_videos=self.settings.max_phis_len,
            max_entries=self.settings.max_chis_len,
            fill_up=self.settings.fill_up_comments,
            sampler=self.settings.negative_sampler,
        )

    @property
    def label(self) -> str:
        """How progress bars call it."""
        return f"stage two {self.task.label}"

    @property
    def negatives(self) -> int:
        """Sampled negatives of the task."""
        return self.settings.neg_video_num if self.task is Task.REC else self.settings.neg_comment_num

    def training(self) -> RankData:
        """The training samples."""
        return self.data(Split.TRAIN)

    def about(self, processes: int) -> dict[str, Any]:
        """The part of every stage-two manifest that says where its weights come from."""
        return {
            "kind": STAGE_TWO,
            "task": self.task.value,
            "settings": asdict(self.settings),
            "seed": self.settings.seed,
            "data_hash": self.dataset.data_hash,
            "parent": None if self.parent is None else recorded(self.parent, self.handover),
            "texts": None if self.texts is None else self.texts.about,
            "position_rows": self.model.sr.max_position,
            "processes": processes,
            "versions": versions(),
        }

    def identity(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """By content what the settings name by path."""
        texts, parent = about["texts"], about["parent"]
        return {
            "freeze": ",".join(frozen_groups(self.settings.freeze)),
            "stage-one checkpoint": None if parent is None else parent["manifest"],
            "video text vectors": None if texts is None else texts["videos"]["sha256"],
            "comment text vectors": None if texts is None else texts["comments"]["sha256"],
        }


def set_up(settings: RankSettings) -> Setup:
    """Check the settings, open what they name and build the model, initialised from `settings.seed`.

    Raises:
        UserError: settings that cannot work together, and whatever is wrong with dataset, vectors or checkpoint.
    """
    task = check_settings(settings)
    dataset = open_dataset(settings.data_path)
    parent = find_stage_one(settings.pretrain_checkpoint)
    texts = None if settings.disable_text else load_texts(settings, dataset, parent)
    seed_everything(settings.seed, _INITIALISATION)
    model = build_model(settings, task, dataset, texts, 0 if parent is None else parent.position_rows)
    handover = None if parent is None else hand_over(model, parent)
    freeze(model, frozen_groups(settings.freeze))
    return Setup(settings, task, dataset, parent, texts, model, handover)


def check_settings(settings: RankSettings) -> Task:
    """The task, after checking what no single flag can.

    Raises:
        UserError: naming the flags.
    """
    try:
        task = Task.parse(settings.finetune_task)
    except ValueError as unknown:
        raise UserError(f"--finetune_task: {unknown}") from None
    parse_metric(metric_name(settings))
    frozen_groups(settings.freeze)
    for flag in ("max_phis_len", "max_chis_len"):
        if not 1 <= getattr(settings, flag) <= settings.max_position:
            raise UserError(
                f"--{flag} {getattr(settings, flag)} must be between 1 and --max_position {settings.max_position}"
            )
    check_bounds(settings, "num_train_epochs")
    if task is Task.COMM_RANK and settings.neg_comment_num < 1:
        raise UserError("--neg_comment_num must be at least 1: CommRank learns from negatives")
    if task is Task.REC:
        _check_rec_loss(settings)
    if settings.disable_text and settings.disable_id:
        raise UserError("--disable_text with --disable_id leaves nothing to rank by; drop one of them")
    if settings.hidden % settings.heads:
        raise UserError(f"--hidden {settings.hidden} must be a multiple of --heads {settings.heads}")
    return task


def _check_rec_loss(settings: RankSettings) -> None:
    """Refuse losses, samplers and numbers of negatives of Rec that do not go together."""
    loss, sampler, negatives = settings.rec_loss, settings.negative_sampler, settings.neg_video_num
    if loss != "softmax" and sampler != "uniform":
        raise UserError(
            f"--rec_loss {loss} is defined for uniform negatives; drop --negative_sampler {sampler}, or use "
            "--rec_loss softmax"
        )
    if loss != "softmax" and not negatives:
        raise UserError(f"--rec_loss {loss} learns from sampled negatives; give --neg_video_num, such as 256")
    if sampler == "log_uniform" and not negatives:
        raise UserError(
            "--negative_sampler log_uniform needs --neg_video_num, such as 1000: so many it draws"
        )
    if sampler == "in_batch" and negatives:
        raise UserError(
            f"--negative_sampler in_batch takes the other rows' targets and draws none; "
            f"drop --neg_video_num {negatives}"
        )
    if sampler == "in_batch" and settings.per_device_train_batch_size < 2:
        raise UserError("--negative_sampler in_batch needs --per_device_train_batch_size 2 or more")


def metric_name(settings: RankSettings | BaselineSettings | ClickSettings) -> str:
    """The selection metric in our spelling; the reference's libraries put `eval_` before it."""
    return settings.metric_for_best_model.lower().removeprefix("eval_")


def build_model(
    settings: RankSettings, task: Task, dataset: Dataset, texts: TextTables | None, position_rows: int = 0
) -> RankModel:
    """A freshly initialised model of the settings' shape; `position_rows` is the least its tables have."""
    sr = SRModel.from_settings(
        settings,
        max(settings.max_position, position_rows),
        n_videos=0 if settings.disable_id else dataset.n_videos,
        n_comments=dataset.n_comments if settings.disable_text else 0,
        use_text=not settings.disable_text,
        use_comments=not settings.disable_comments,
    )
    for table in (sr.video_id, sr.comment_id):
        if table is not None:
            # Against small text vectors, ids of the usual size would drown at once what stage one has taught.
            table.weight.data.mul_(settings.id_init_std / INITIAL_STD)
    head = None
    if texts is not None and texts.needs_head:
        head = EmbeddingHead(texts.width, settings.text_width)
        if settings.standardise_texts:
            some = [texts.videos[:STANDARDISED_TEXTS], texts.comments[:STANDARDISED_TEXTS]]
            head.standardise(torch.cat(some))
    return RankModel(
        sr,
        task,
        None if texts is None else texts.videos,
        None if texts is None else texts.comments,
        n_videos=dataset.n_videos,
        n_comments=dataset.n_comments,
        head=head,
        id_text_weight=settings.id_text_loss_weight,
        id_text_negatives=settings.id_text_negatives,
        with_id=_with_id(settings, dataset),
        sampled_loss=_sampled_loss(settings, dataset) if task is Task.REC else None,
    )


def _with_id(settings: RankSettings, dataset: Dataset) -> torch.Tensor | None:
    """Which videos have an id embedding; None = all."""
    if settings.min_id_count <= 0 or settings.disable_id or settings.disable_text:
        return None
    return torch.from_numpy(dataset.train_counts() >= settings.min_id_count)


def _sampled_loss(settings: RankSettings, dataset: Dataset) -> SampledLoss:
    """The loss of Rec with sampled negatives.

    Raises:
        UserError: gBCE with more negatives than there are.
    """
    if settings.rec_loss == "softmax":
        logs = log_draw_probability(dataset, settings.negative_sampler)
        in_batch = settings.negative_sampler == "in_batch"
        return SampledLoss(None, None if logs is None else torch.from_numpy(logs), in_batch)
    if settings.rec_loss == "bce":
        return SampledLoss(1.0)
    if settings.neg_video_num >= dataset.n_videos:
        raise UserError(
            f"--neg_video_num {settings.neg_video_num}: a target has {dataset.n_videos - 1} negatives in "
            f"{dataset.root}; gbce wants at most as many"
        )
    return SampledLoss(gbce_beta(settings.neg_video_num, dataset.n_videos, settings.gbce_t))


def versions() -> dict[str, str]:
    """The versions that every manifest records."""
    return {"lsvcr": __version__, "torch": torch.__version__, "python": platform.python_version()}


def restore(folder: Path, dataset: Dataset) -> tuple[Setup, dict[str, Any]]:
    """The model of a stage-two checkpoint folder, and its manifest.

    Raises:
        UserError: no such checkpoint, another dataset, text vectors that have changed or gone.
    """
    weights = checkpoint.load(folder)
    manifest = weights.manifest
    if manifest.get("kind") != STAGE_TWO:
        hint = "; `lsvcr evaluate-llm` measures its LLM" if manifest.get("kind") == STAGE_ONE else ""
        raise UserError(
            f"{folder} holds a {manifest.get('kind')} checkpoint, not one of stage two (finetune.py){hint}"
        )
    check_dataset(folder, manifest, dataset)
    settings = recorded_settings(RankSettings, manifest)
    task = Task(manifest["task"])
    texts = None
    if manifest["texts"] is not None:
        files = manifest["texts"]
        named = replace(
            settings, photo_emb_file=files["videos"]["path"], comment_emb_file=files["comments"]["path"]
        )
        texts = load_texts(named, dataset, None)
        texts.check_same(manifest["texts"], str(folder))
    model = build_model(settings, task, dataset, texts, manifest["position_rows"])
    checkpoint.load_into(model, weights.tensors, source=str(folder))
    return Setup(settings, task, dataset, None, texts, model), manifest


def check_dataset(folder: Path, manifest: Mapping[str, Any], dataset: Dataset) -> None:
    """Raise a UserError unless the checkpoint was trained on this dataset."""
    if manifest["data_hash"] != dataset.data_hash:
        raise UserError(
            f"{folder} was trained on another dataset than {dataset.root} (their hashes differ); give the one it was "
            "trained on, or train again"
        )


def recorded_settings(kind: type[S], manifest: Mapping[str, Any]) -> S:
    """The settings in a manifest; what a later version has dropped is passed over, what it has added has its default.

    Args:
        kind: the dataclass.
        manifest: of a checkpoint.
    """
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in manifest["settings"].items() if name in known})
