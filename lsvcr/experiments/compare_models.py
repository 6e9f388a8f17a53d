"""What `lsvcr compare` can put into a row: every recommender of the registry, and LSVCR with and without its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import lsvcr
from lsvcr.baselines.registry import check_needs, entries
from lsvcr.data.store import Dataset
from lsvcr.experiments.compare_job import COMMENTS, REGISTRY, Job
from lsvcr.schema import (
    COMMENT_FULL_EMBEDDINGS_FILE,
    LIKES,
    STAGE_TWO,
    VIDEO_FULL_EMBEDDINGS_FILE,
    Split,
    Task,
)
from lsvcr.settings import BaselineSettings, CompareSettings, FittedSettings, RankSettings
from lsvcr.training.rank_handover import find_stage_one
from lsvcr.training.rank_texts import load_texts
from lsvcr.utils.arguments import load_search, load_settings, nearest
from lsvcr.utils.errors import UserError

ALL, LIST = "all", "list"
LSVCR = "lsvcr"

Search = Mapping[str, Sequence[Any]]
RATES: Search = {"learning_rate": (1e-3, 3e-4, 3e-3, 1e-4, 1e-2), "weight_decay": (0.0, 1e-5, 1e-4, 1e-3)}
"""What a trained model may try whose file has no `search` section: what all of them have."""


@dataclass(frozen=True)
class Member:
    """A row that can be asked for.

    Attributes:
        name: what a user types.
        summary: one sentence.
        kind: `REGISTRY`, `STAGE_TWO` or `COMMENTS`: who trains it.
        settings: dataclass of its settings.
        fixed: settings that make it what it is.
        starts: LSVCR: `aligned` needs a stage-one run, `either` takes one if there is one, `untuned` never does.
    """

    name: str
    summary: str
    kind: str
    settings: type[FittedSettings] | type[RankSettings]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    starts: Literal["", "aligned", "either", "untuned"] = ""

    @property
    def is_product(self) -> bool:
        """Is it LSVCR, or LSVCR without a part? All others are baselines."""
        return self.kind == STAGE_TWO

    @property
    def trained(self) -> bool:
        """Has it epochs and a seed?"""
        return issubclass(self.settings, (BaselineSettings, RankSettings))


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
    registered = [Member(e.name, e.summary, REGISTRY, e.settings) for e in entries().values()]
    return {member.name: member for member in (*registered, *_OF_COMMENTS, *_PRODUCT)}


def choose(names: str, dataset: Dataset, settings: CompareSettings) -> tuple[list[Member], dict[str, str]]:
    """The rows that are asked for, in order, and what `all` leaves out with the reason.

    Raises:
        UserError: a name that is not known (the nearest is named) or comes twice, or one that the dataset or the flags
            cannot serve, with what to use instead.
    """
    known = members()
    words = names.replace(",", " ").split()
    if words == [ALL]:
        reasons = {name: reason(member, dataset, settings) for name, member in known.items()}
        left_out = {name: why for name, why in reasons.items() if why}
        chosen = [member for name, member in known.items() if name not in left_out]
        if not chosen:
            raise UserError(f"{dataset.root} serves none of the models: {'; '.join(left_out.values())}")
        return chosen, left_out
    chosen = []
    for word in words:
        member = known.get(word) or known.get(word.replace("-", "_")) or known.get(word.replace("_", "-"))
        if member is None:
            hint = nearest(word, [*known, ALL]) or "there are " + ", ".join([*known, ALL])
            raise UserError(f"no model {word!r}; {hint}")
        if member in chosen:
            raise UserError(f"--models has {member.name} twice; keep one")
        why = reason(member, dataset, settings)
        if why:
            raise UserError(why)
        chosen.append(member)
    if not chosen:
        raise UserError(f"--models wants names with commas between them: {', '.join([*known, ALL])}")
    return chosen, {}


def reason(member: Member, dataset: Dataset, settings: CompareSettings) -> str:
    """Why a row cannot be had from this dataset, and what to use instead; empty where it can."""
    task = Task.parse(settings.task)
    if member.kind == COMMENTS:
        return _reason_of_comments(member, dataset, task)
    if member.kind == REGISTRY:
        if task is Task.COMM_RANK:
            return f"{member.name} recommends videos: compare it with --task Rec; here use comment_popularity"
        try:
            check_needs(entries()[member.name], dataset)
        except UserError as lacking:
            return str(lacking)
        return ""
    if member.starts == "aligned" and not settings.aligned:
        return f"{member.name} needs a stage-one run: give --aligned RUN, or use lsvcr-untuned"
    try:
        inputs(member, dataset, settings)
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


def sources(member: Member, settings: CompareSettings, place: int = 0) -> dict[str, Any]:
    """Settings of LSVCR that say where weights and text vectors come from.

    Args:
        member: a row of LSVCR.
        settings: of the command.
        place: of the seed, from 0: several stage-one runs take turns.
    """
    runs = _runs(settings)
    if runs and member.starts in ("aligned", "either"):
        return {"pretrain_checkpoint": runs[place % len(runs)]}
    folder = Path(settings.untuned or settings.data)
    return {
        "pretrain_checkpoint": "none",
        "photo_emb_file": str(folder / VIDEO_FULL_EMBEDDINGS_FILE),
        "comment_emb_file": str(folder / COMMENT_FULL_EMBEDDINGS_FILE),
    }


def _runs(settings: CompareSettings) -> list[str]:
    return settings.aligned.replace(",", " ").split()


def inputs(member: Member, dataset: Dataset, settings: CompareSettings, place: int = 0) -> dict[str, str]:
    """By content what a row of LSVCR is made of beside its dataset.

    Raises:
        UserError: a stage-one run or text vectors are missing, damaged or of another dataset.
    """
    if member.kind != STAGE_TWO or member.fixed.get("disable_text"):
        return {}
    chosen = RankSettings(**sources(member, settings, place))
    parent = find_stage_one(chosen.pretrain_checkpoint)
    about = load_texts(chosen, dataset, parent).about
    found = {f"{kind} text vectors": entry["sha256"] for kind, entry in about.items()}
    return found if parent is None else {"stage-one checkpoint": parent.sha256, **found}


@dataclass(frozen=True)
class Recipe:
    """A row's settings before any search, and what it may try.

    Attributes:
        member: the row.
        settings: without data, folder and seed.
        search: values by setting.
        file: where the settings come from; empty = the defaults.
        fallback: the file says nothing of a search.
        contents: of LSVCR, what its stage-one runs and text vectors hold, in the turn of the seeds.
    """

    member: Member
    settings: FittedSettings | RankSettings
    search: Search
    file: str
    fallback: bool
    contents: Sequence[Mapping[str, str]]


def recipe(member: Member, dataset: Dataset, settings: CompareSettings) -> Recipe:
    """A row's settings from its YAML file, with what the command fixes for every row.

    Raises:
        UserError: a broken file, or one that would search what makes the row what it is.
    """
    file = _config(member, Path(settings.configs))
    own = member.settings() if file is None else load_settings(member.settings, file)
    search: Search = {} if file is None else load_search(member.settings, file)
    fallback = member.trained and not search
    shared: dict[str, Any] = {} if member.kind == COMMENTS else dict(member.fixed)
    if member.trained:
        shared |= {"metric_for_best_model": settings.metric, "report_to": "none"}
        if settings.epochs:
            shared["num_train_epochs"] = settings.epochs
    if member.kind == STAGE_TWO:
        shared["finetune_task"] = settings.task
    wrong = sorted(set(search) & {*shared, "seed", "data_path", "output_dir"})
    if wrong:
        raise UserError(f"{file}: search must leave {', '.join(wrong)} alone, which `lsvcr compare` sets")
    return Recipe(
        member=member,
        settings=replace(own, **shared),
        search=RATES if fallback else search,
        file="" if file is None else str(file),
        fallback=fallback,
        contents=[inputs(member, dataset, settings, turn) for turn in range(len(_runs(settings)) or 1)],
    )


def _config(member: Member, folder: Path) -> Path | None:
    """The row's file: its own, or for LSVCR without a part that of LSVCR; looked for here, then in the checkout."""
    checkout = Path(lsvcr.__file__).resolve().parents[1]
    names = [f"compare/{member.name}.yaml", f"compare/{LSVCR}.yaml"] if member.is_product else []
    names = names or [f"baselines/{member.name}.yaml"]
    for root in dict.fromkeys([folder, checkout / folder]):
        for name in names:
            if (root / name).is_file():
                return root / name
    return None


def job(
    own: Recipe, chosen: Mapping[str, Any], dataset: Dataset, settings: CompareSettings, place: int = 0
) -> Job:
    """One model to train: a row's settings with some of them chosen, and a seed.

    Args:
        own: of the row.
        chosen: settings of the search.
        dataset: open.
        settings: of the command.
        place: of the seed, from 0.
    """
    member = own.member
    values: dict[str, Any] = {**chosen, "data_path": settings.data}
    if member.trained:
        values["seed"] = settings.seed + place
    if member.kind == STAGE_TWO:
        values |= sources(member, settings, place)
    complete = replace(own.settings, **values)
    return Job(
        name=member.name,
        kind=member.kind,
        by=str(member.fixed.get("by", "")) if member.kind == COMMENTS else "",
        task=Task.parse(settings.task).value,
        metric=settings.metric,
        protocol=settings.protocol,
        settings={f.name: getattr(complete, f.name) for f in fields(complete)},
        inputs=own.contents[place % len(own.contents)],
        data_hash=dataset.data_hash,
        out=settings.out,
    )


def check_samples(dataset: Dataset, task: Task) -> None:
    """Raise a UserError where the dataset has nothing to validate or test a task on."""
    for split in (Split.VAL, Split.TEST):
        if not len(dataset.samples(task, split)):
            other = "" if task is Task.REC else "; use --task Rec"
            raise UserError(f"{dataset.root} has no {task.label} samples in its {split.value} split{other}")
