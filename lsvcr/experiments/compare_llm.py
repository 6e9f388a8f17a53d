"""The rows of `lsvcr compare` that are made of an LLM: when they can be had, and what they are made of."""

from collections.abc import Sequence
from typing import Any

from lsvcr.baselines.registry import NEEDS
from lsvcr.data.item_texts import item_fields
from lsvcr.data.store import Dataset
from lsvcr.data.vectors import described
from lsvcr.llm.contents import local_digest
from lsvcr.schema import Task
from lsvcr.training.llm_users import item_vectors, open_source, vector_file
from lsvcr.utils.errors import UserError


def reason_of_aligned(runs: Sequence[str], dataset: Dataset, task: Task) -> str:
    """Why the LLM of stage one cannot be had, and what to use instead; empty where it can."""
    if not runs:
        return "llm-aligned needs a stage-one run: give --aligned RUN, or use lsvcr-untuned"
    try:
        for run in runs:
            item_vectors(open_source(run, task), dataset, task)
    except UserError as lacking:
        return f"llm-aligned: {lacking}; or use lsvcr-untuned"
    return ""


def reason_of_generative(llm: str, dataset: Dataset, task: Task) -> str:
    """Why an LLM that says titles cannot be had, and what to use instead; empty where it can."""
    why = _reason_of_llm("generative", llm, task, "sasrec")
    if why:
        return why
    words, has = NEEDS["texts"]
    if not has(dataset):
        return f"generative needs {words}, which {dataset.root} does not have; use sasrec"
    return ""


def reason_of_hllm(llm: str, fields: str, dataset: Dataset, task: Task) -> str:
    """Why HLLM with both LLMs in training cannot be had, and what to use instead; empty where it can.

    Args:
        llm: of `--llm`.
        fields: the row's `item_fields`.
        dataset: open.
        task: of the comparison.
    """
    why = _reason_of_llm("hllm", llm, task, "hllm_light")
    if why:
        return why
    try:
        item_fields(dataset, fields)
    except UserError as lacking:
        return f"hllm: {lacking} in the row's YAML file; or use sasrec"
    return ""


def _reason_of_llm(name: str, llm: str, task: Task, instead: str) -> str:
    """The part of a reason that no dataset can change."""
    if task is Task.COMM_RANK:
        return f"{name} recommends videos: compare it with --task Rec; here use comment_popularity"
    return "" if llm else f"{name} needs an LLM: give --llm smollm2-135m (or another), or use {instead}"


def llm_inputs(settings: Any) -> dict[str, str]:
    """By content the LLMs that a row's settings name, where they lie here; none of any other row's."""
    names = {"LLM": "model_name_or_path", "user LLM": "user_model_name_or_path"}
    digests = {what: local_digest(getattr(settings, name, "")) for what, name in names.items()}
    return {what: digest for what, digest in digests.items() if digest}


def aligned_inputs(run: str, dataset: Dataset, task: Task, named: str) -> dict[str, str]:
    """By content what the LLM of a stage-one run is measured with.

    Args:
        run: of `--aligned`.
        dataset: open.
        task: of the comparison.
        named: the row's LLM; empty = the one that the run was trained on.

    Raises:
        UserError: the run is none or has learned another task.
    """
    source = open_source(run, task)
    file = vector_file(source, task)
    entry = described(file) or {}
    found = {"stage-one checkpoint": source.digest, file.name: str(entry.get("sha256"))}
    return found | ({} if named else llm_inputs(source.trained))
