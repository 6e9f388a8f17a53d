"""What `lsvcr compare` can put into a row: every recommender of the registry, and LSVCR with and without its parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import lsvcr
from lsvcr.baselines.generative_settings import SpokenSettings
from lsvcr.baselines.registry import check_needs, entries
from lsvcr.data.store import Dataset
from lsvcr.experiments.compare_job import ALIGNED_LLM, ASK_LLM, COMMENTS, GENERATIVE, REGISTRY
from lsvcr.experiments.compare_llm import (
    aligned_inputs,
    reason_of_aligned,
    reason_of_generative,
    reason_of_hllm,
)
from lsvcr.schema import (
    COMMENT_FULL_EMBEDDINGS_FILE,
    HLLM,
    LIKES,
    STAGE_TWO,
    VIDEO_FULL_EMBEDDINGS_FILE,
    Split,
    Task,
)
from lsvcr.settings import (
    BaselineSettings,
    CompareSettings,
    EvaluateLlmSettings,
    FittedSettings,
    HllmSettings,
    RankSettings,
)
from lsvcr.training.rank_handover import find_stage_one
from lsvcr.training.rank_texts import load_texts
from lsvcr.utils.arguments import load_settings, nearest
from lsvcr.utils.errors import UserError

ALL, LIST = "all", "list"
LSVCR = "lsvcr"

_FOLDERS = {GENERATIVE: "generative", HLLM: "hllm"}
"""Folders of settings, beside `baselines` and LSVCR's `compare`, by kind."""

RowSettings = FittedSettings | RankSettings | EvaluateLlmSettings | SpokenSettings
"""Settings of a row: whose they are depends on who makes it."""


@dataclass(frozen=True)
class Member:
    """A row that can be asked for.

    Attributes:
        name: what a user types.
        summary: one sentence.
        entry: of the registry, where it comes from there.
        kind: `STAGE_TWO`, `HLLM`, or one of compare_job: who trains or reads it.
        settings: dataclass of its settings.
        fixed: settings that make it what it is.
        config: name or path of the YAML file; empty = that of the name.
        starts: LSVCR: `aligned` needs a stage-one run, `either` takes one if there is one, `untuned` never does.
    """

    name: str
    summary: str
    kind: str
    settings: type[RowSettings]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    starts: Literal["", "aligned", "either", "untuned"] = ""
    entry: str = ""
    config: str = ""

    @property
    def is_product(self) -> bool:
        """Is it LSVCR, or LSVCR without a part? All others are baselines."""
        return self.kind in (STAGE_TWO, ALIGNED_LLM)

    @property
    def trained(self) -> bool:
        """Is it trained with validations between, of which the best counts?"""
        return issubclass(self.settings, (BaselineSettings, RankSettings))

    @property
    def seeded(self) -> bool:
        """Is there a model of each seed?"""
        return self.trained or self.kind == GENERATIVE

    @property
    def asks_llm(self) -> bool:
        """Does it ask an LLM for every row?"""
        return self.kind in ASK_LLM


_PRODUCT = (
    Member(LSVCR, "LSVCR, both stages.", STAGE_TWO, RankSettings, starts="aligned"),
    Member(
        "lsvcr-untuned",
        "LSVCR without stage one: the untuned LLM's texts.",
        STAGE_TWO,
        RankSettings,
        {},
        "untuned",
    ),
    Member(
        "lsvcr-no-comments",
        "LSVCR without comments, from stage one where --aligned is given.",
        STAGE_TWO,
        RankSettings,
        {"disable_comments": True},
        "either",
    ),
    Member(
        "lsvcr-text",
        "LSVCR without ids, from stage one where --aligned is given.",
        STAGE_TWO,
        RankSettings,
        {"disable_id": True},
        "either",
    ),
    Member(
        "lsvcr-id",
        "LSVCR without texts, and so without stage one.",
        STAGE_TWO,
        RankSettings,
        {"disable_text": True},
    ),
)
_ALIGNED_LLM = Member(
    "llm-aligned",
    "LSVCR's LLM itself after stage one, without the SR model: it reads a prompt a row.",
    ALIGNED_LLM,
    EvaluateLlmSettings,
)
_GENERATIVE = Member(
    "generative",
    "An LLM (--llm) that is tuned to say the next title; its titles are grounded as is best on validation.",
    GENERATIVE,
    SpokenSettings,
)
_HLLM = Member(
    HLLM,
    "HLLM with both its LLMs (--llm) in training: one reads videos' texts, one reads histories.",
    HLLM,
    HllmSettings,
)
_OF_COMMENTS = (
    Member(
        "comment_popularity",
        "CommRank: comments by training interactions; not trained.",
        COMMENTS,
        FittedSettings,
        {"by": "train"},
    ),
    Member(
        "comment_likes",
        "CommRank: comments by the likes that the platform shows; not trained.",
        COMMENTS,
        FittedSettings,
        {"by": "likes"},
    ),
)


def members() -> dict[str, Member]:
    """Every row there can be, baselines first."""
    registered = [Member(e.name, e.summary, REGISTRY, e.settings, entry=e.name) for e in entries().values()]
    every = (*registered, _HLLM, _GENERATIVE, *_OF_COMMENTS, *_PRODUCT, _ALIGNED_LLM)
    return {member.name: member for member in every}


def choose(names: str, dataset: Dataset, settings: CompareSettings) -> tuple[list[Member], dict[str, str]]:
    """The rows that are asked for, in order, and what `all` leaves out with the reason.

    Raises:
        UserError: a name that is not known (the nearest is named) or comes twice, or one that the dataset or the flags
            cannot serve, with what to use instead.
    """
    known = members()
    words = names.replace(",", " ").split()
    if words == [ALL]:
        reasons = {
            name: _costly(member, dataset, settings) or reason(member, dataset, settings)
            for name, member in known.items()
        }
        left_out = {name: why for name, why in reasons.items() if why}
        served = [member for name, member in known.items() if name not in left_out]
        if not served:
            raise UserError(f"{dataset.root} serves none of the models: {'; '.join(left_out.values())}")
        return served, left_out
    chosen: list[Member] = []
    for word in words:
        member = named(word, known)
        if member.name in [other.name for other in chosen]:
            raise UserError(f"--models has {member.name} twice; keep one")
        why = reason(member, dataset, settings)
        if why:
            raise UserError(why)
        chosen.append(member)
    if not chosen:
        raise UserError(f"--models wants names with commas between them: {', '.join([*known, ALL])}")
    return chosen, {}


def _costly(member: Member, dataset: Dataset, settings: CompareSettings) -> str:
    """Why `all` does not mean a row that would take more time than all the others together; empty where it does."""
    if member.kind != ALIGNED_LLM or not settings.aligned or settings.max_rows:
        return ""
    task = Task.parse(settings.task)
    prompts = sum(len(dataset.samples(task, split)) for split in (Split.VAL, Split.TEST))
    return f"{member.name} reads {prompts:,} prompts with the LLM: name it in --models, or bound it with --max_rows"


def named(word: str, known: Mapping[str, Member]) -> Member:
    """The row of a word of `--models`: a name, or NAME:CONFIG for other settings of the same model.

    Raises:
        UserError: there is none; the nearest is named.
    """
    name, _, config = word.partition(":")
    member = known.get(name) or known.get(name.replace("-", "_")) or known.get(name.replace("_", "-"))
    if member is None:
        raise UserError(
            f"no model {name!r}; {nearest(name, [*known, ALL]) or 'there are ' + ', '.join([*known, ALL])}"
        )
    if not config:
        return member
    stem = Path(config).stem
    label = stem if member.name in stem else f"{member.name}-{stem}"
    return replace(member, name=label, summary=f"{member.summary} Settings: {config}.", config=config)


def reason(member: Member, dataset: Dataset, settings: CompareSettings) -> str:
    """Why a row cannot be had from this dataset, and what to use instead; empty where it can."""
    task = Task.parse(settings.task)
    if member.kind == COMMENTS:
        return _reason_of_comments(member, dataset, task)
    if member.kind == ALIGNED_LLM:
        return reason_of_aligned(stage_one_runs(settings), dataset, task)
    if member.kind == GENERATIVE:
        return reason_of_generative(settings.llm, dataset, task)
    if member.kind == HLLM:
        own = row_settings(member, settings)[1]
        assert isinstance(own, HllmSettings)
        return reason_of_hllm(settings.llm, own.item_fields, dataset, task)
    if member.kind == REGISTRY:
        if task is Task.COMM_RANK:
            return f"{member.name} recommends videos: compare it with --task Rec; here use comment_popularity"
        own = row_settings(member, settings)[1]
        try:
            check_needs(entries()[member.entry], dataset)
            inputs(member, dataset, settings, own)
        except UserError as lacking:
            told = str(lacking)
            return told if told.startswith(member.entry) else f"{member.name}: {told}"
        return ""
    if member.starts == "aligned" and not settings.aligned:
        return f"{member.name} needs a stage-one run: give --aligned RUN, or use lsvcr-untuned"
    if member.fixed.get("disable_text"):
        return ""
    try:
        needed = sources(member, settings)
        files = [needed[name] for name in ("photo_emb_file", "comment_emb_file") if name in needed]
        if not all(Path(file).is_file() for file in files):
            return (
                f"{member.name} needs the untuned LLM's text vectors ({', '.join(files)}): make them with `lsvcr embed "
                f"--checkpoint none --model_name_or_path LLM --data_path {settings.data}`, name their folder with "
                "--untuned, or use lsvcr-id"
            )
        inputs(member, dataset, settings, row_settings(member, settings)[1])
    except UserError as lacking:
        return f"{member.name}: {lacking}; or use lsvcr-id"
    return ""


def _reason_of_comments(member: Member, dataset: Dataset, task: Task) -> str:
    if task is Task.REC:
        return f"{member.name} ranks comments: compare it with --task CommRank"
    if member.fixed["by"] == "likes":
        column = dataset.column("comments", LIKES)
        if len(column) and column.is_null().all():
            return (
                f"{member.name} needs like counts, which {dataset.root} does not have; use comment_popularity"
            )
    return ""


def row_settings(member: Member, settings: CompareSettings) -> tuple[Path | None, RowSettings]:
    """A row's YAML file, None where it has none, and what it and the defaults say.

    Raises:
        UserError: there is no such file, or it is broken.
    """
    file = _config(member, Path(settings.configs))
    return file, member.settings() if file is None else load_settings(member.settings, file)


def _config(member: Member, folder: Path) -> Path | None:
    """The row's file: the one that is asked for, its own, or for LSVCR without a part that of LSVCR.

    It is looked for in `folder` from here on, then in that of the checkout, then in the checkout's `config`.
    """
    part = "compare" if member.is_product else _FOLDERS.get(member.kind, "baselines")
    if member.config.endswith((".yaml", ".yml")):
        return Path(member.config)
    names = [member.config or member.name]
    if member.kind == STAGE_TWO and not member.config:
        names.append(LSVCR)
    checkout = Path(lsvcr.__file__).resolve().parents[1]
    roots = dict.fromkeys((folder, checkout / folder, checkout / "config"))
    places = [root / part / f"{name}.yaml" for root in roots for name in names]
    found = next((file for file in places if file.is_file()), None)
    if found is None and member.config:
        there = sorted({file.stem for place in places for file in place.parent.glob("*.yaml")})
        hint = nearest(member.config, there) or f"there are {', '.join(there) or 'none'}"
        raise UserError(f"no settings {part}/{member.config}.yaml in {folder}; {hint}")
    return found


def sources(member: Member, settings: CompareSettings, place: int = 0) -> dict[str, Any]:
    """Settings of LSVCR that say where weights and text vectors come from.

    Args:
        member: a row of LSVCR.
        settings: of the command.
        place: of the seed, from 0: several stage-one runs take turns.
    """
    runs = stage_one_runs(settings)
    if runs and member.starts in ("aligned", "either"):
        return {"pretrain_checkpoint": runs[place % len(runs)]}
    folder = Path(settings.untuned or settings.data)
    return {
        "pretrain_checkpoint": "none",
        "photo_emb_file": str(folder / VIDEO_FULL_EMBEDDINGS_FILE),
        "comment_emb_file": str(folder / COMMENT_FULL_EMBEDDINGS_FILE),
    }


def turns(settings: CompareSettings) -> int:
    """How many stage-one runs take turns; 1 without any."""
    return len(stage_one_runs(settings)) or 1


def models_of(member: Member, settings: CompareSettings) -> int:
    """How many models a row is the mean of."""
    if member.kind == ALIGNED_LLM:
        return min(settings.seeds, turns(settings))
    return settings.seeds if member.seeded else 1


def stage_one_runs(settings: CompareSettings) -> list[str]:
    """Those that `--aligned` names."""
    return settings.aligned.replace(",", " ").split()


def inputs(
    member: Member,
    dataset: Dataset,
    settings: CompareSettings,
    own: RowSettings,
    place: int = 0,
) -> dict[str, str]:
    """By content what a row is made of beside its dataset: stage-one run and text vectors, or item vectors.

    LLMs that its own settings name are not among them: see `compare_llm.llm_inputs`.

    Raises:
        UserError: they are missing, damaged or of another dataset.
    """
    if member.kind == ALIGNED_LLM:
        assert isinstance(own, EvaluateLlmSettings)
        run, task = stage_one_runs(settings)[place], Task.parse(settings.task)
        return aligned_inputs(run, dataset, task, own.model_name_or_path)
    if member.kind == REGISTRY:
        return {name: entry["sha256"] for name, entry in entries()[member.entry].inputs(own, dataset).items()}
    if member.kind != STAGE_TWO or member.fixed.get("disable_text"):
        return {}
    chosen = RankSettings(**sources(member, settings, place))
    parent = find_stage_one(chosen.pretrain_checkpoint)
    about = load_texts(chosen, dataset, parent).about
    found = {f"{kind} text vectors": entry["sha256"] for kind, entry in about.items()}
    return found if parent is None else {"stage-one checkpoint": parent.sha256, **found}


def check_samples(dataset: Dataset, task: Task) -> None:
    """Raise a UserError where the dataset has nothing to validate or test a task on."""
    for split in (Split.VAL, Split.TEST):
        if not len(dataset.samples(task, split)):
            other = "" if task is Task.REC else "; use --task Rec"
            raise UserError(f"{dataset.root} has no {task.label} samples in its {split.value} split{other}")
