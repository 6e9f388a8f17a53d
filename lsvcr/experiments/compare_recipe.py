"""The settings of a row of `lsvcr compare`, what it may try besides, and the models that come of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from lsvcr.baselines.generative_settings import SpokenSettings
from lsvcr.data.rank_sequences import SequenceData
from lsvcr.data.store import Dataset
from lsvcr.experiments.compare_job import ALIGNED_LLM, COMMENTS, GENERATIVE, Job
from lsvcr.experiments.compare_llm import llm_inputs
from lsvcr.experiments.compare_models import (
    Member,
    RowSettings,
    inputs,
    row_settings,
    sources,
    stage_one_runs,
    turns,
)
from lsvcr.schema import HLLM, STAGE_TWO, Task
from lsvcr.settings import (
    BaselineSettings,
    CompareSettings,
    HllmSettings,
    RankSettings,
)
from lsvcr.training.hllm import make_plan
from lsvcr.utils.arguments import load_search
from lsvcr.utils.errors import UserError

Search = Mapping[str, Sequence[Any]]
_OURS = ("seed", "data_path", "output_dir", "model_name_or_path", "max_rows", "rows_seed")
"""Settings that the command gives."""

RATES: Search = {"learning_rate": (1e-3, 3e-4, 3e-3, 1e-4, 1e-2), "weight_decay": (0.0, 1e-5, 1e-4, 1e-3)}
"""What a trained model may try whose file has no `search` section: what all of them have."""


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
    settings: RowSettings
    search: Search
    file: str
    fallback: bool
    contents: Sequence[Mapping[str, str]]


def recipe(member: Member, dataset: Dataset, settings: CompareSettings) -> Recipe:
    """A row's settings from its YAML file, with what the command fixes for every row.

    Raises:
        UserError: a broken file, or one that would search what makes the row what it is.
    """
    file, own = row_settings(member, settings)
    search: Search = {} if file is None else load_search(member.settings, file)
    fallback = member.trained and not search
    shared: dict[str, Any] = {} if member.kind == COMMENTS else dict(member.fixed)
    if member.trained:
        shared |= {"metric_for_best_model": settings.metric, "report_to": "none"}
    if settings.epochs and isinstance(own, (BaselineSettings, RankSettings, SpokenSettings)):
        shared["num_train_epochs"] = min(own.num_train_epochs, settings.epochs)
    if member.kind == STAGE_TWO:
        shared["finetune_task"] = settings.task
    wrong = sorted(set(search) & {*shared, *_OURS})
    if wrong:
        raise UserError(f"{file}: search must leave {', '.join(wrong)} alone, which `lsvcr compare` sets")
    return Recipe(
        member=member,
        settings=replace(own, **shared),
        search=RATES if fallback else search,
        file="" if file is None else str(file),
        fallback=fallback,
        contents=[inputs(member, dataset, settings, own, turn) for turn in range(turns(settings))],
    )


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
    values = {**chosen, **_placed(member, settings, place)}
    complete = _bounded(replace(own.settings, **values), dataset, settings.epochs)
    return Job(
        name=member.name,
        entry=member.entry,
        kind=member.kind,
        by=str(member.fixed.get("by", "")) if member.kind == COMMENTS else "",
        task=Task.parse(settings.task).value,
        metric=settings.metric,
        protocol=settings.protocol,
        settings={f.name: getattr(complete, f.name) for f in fields(complete)},
        inputs={**own.contents[place % len(own.contents)], **llm_inputs(complete)},
        data_hash=dataset.data_hash,
        out=settings.out,
    )


def _placed(member: Member, settings: CompareSettings, place: int) -> dict[str, Any]:
    """What the command says of data, seed and rows to the model of a seed."""
    if member.kind == ALIGNED_LLM:
        runs = stage_one_runs(settings)
        rows = {"max_rows": settings.max_rows, "seed": settings.seed}
        return {"run": runs[place % len(runs)], "data": settings.data, "task": settings.task, **rows}
    values: dict[str, Any] = {"data_path": settings.data}
    if member.seeded:
        values["seed"] = settings.seed + place
    if member.kind == STAGE_TWO:
        values |= sources(member, settings, place)
    if member.kind in (GENERATIVE, HLLM):
        values["model_name_or_path"] = settings.llm
    if member.kind == GENERATIVE:
        values |= {"max_rows": settings.max_rows, "rows_seed": settings.seed}
    return values


def _bounded(own: RowSettings, dataset: Dataset, epochs: int) -> RowSettings:
    """A row's settings, where they count training in steps with no more of them than `epochs` have; 0 = any."""
    if not epochs or not isinstance(own, HllmSettings) or own.max_steps <= 0:
        return own
    users = len(SequenceData(dataset, own.max_his))
    whole = make_plan(replace(own, max_steps=-1, num_train_epochs=epochs), users, world=1).steps
    return replace(own, max_steps=min(own.max_steps, whole))
