"""The settings of a row of `lsvcr compare`, what it may try besides, and the models that come of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from lsvcr.data.store import Dataset
from lsvcr.experiments.compare_job import COMMENTS, Job
from lsvcr.experiments.compare_models import Member, inputs, row_settings, sources, turns
from lsvcr.schema import STAGE_TWO, Task
from lsvcr.settings import BaselineSettings, CompareSettings, FittedSettings, RankSettings
from lsvcr.utils.arguments import load_search
from lsvcr.utils.errors import UserError

Search = Mapping[str, Sequence[Any]]
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
    file, own = row_settings(member, settings)
    search: Search = {} if file is None else load_search(member.settings, file)
    fallback = member.trained and not search
    shared: dict[str, Any] = {} if member.kind == COMMENTS else dict(member.fixed)
    if member.trained:
        shared |= {"metric_for_best_model": settings.metric, "report_to": "none"}
    if settings.epochs and isinstance(own, (BaselineSettings, RankSettings)):
        shared["num_train_epochs"] = min(own.num_train_epochs, settings.epochs)
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
    values: dict[str, Any] = {**chosen, "data_path": settings.data}
    if member.trained:
        values["seed"] = settings.seed + place
    if member.kind == STAGE_TWO:
        values |= sources(member, settings, place)
    complete = replace(own.settings, **values)
    return Job(
        name=member.name,
        entry=member.entry,
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
