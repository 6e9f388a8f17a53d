"""`lsvcr doctor`: what a prepared dataset is like, whether it is sound, and with which settings to begin."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lsvcr.data import audit_facts
from lsvcr.data.audit import audit
from lsvcr.data.audit_vectors import audit_vectors
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.experiments import doctor_estimates as estimates
from lsvcr.experiments import doctor_fit as fit
from lsvcr.experiments.doctor_print import print_report
from lsvcr.experiments.doctor_sanity import sanity
from lsvcr.experiments.doctor_texts import open_tokenizer, sample_tokens, text_tokens
from lsvcr.experiments.doctor_warnings import warnings
from lsvcr.llm.loading import load_config
from lsvcr.schema import BEST_DIR, Task
from lsvcr.settings import AlignSettings, DoctorSettings, RankSettings
from lsvcr.training.align_memory import stage_one_memory
from lsvcr.utils.errors import UserError

__all__ = ["diagnose", "failure", "print_report"]


def diagnose(settings: DoctorSettings) -> dict[str, Any]:
    """Audit a prepared dataset; everything in the report can be written as JSON.

    Returns:
        `ok`: no check, comparison or file of vectors fails. `sound`: the arrays can be followed; where they cannot,
        all that reads them is None or empty, and only the keys up to `checks` are filled.
        `data`, `data_hash`, `split`, `llm`;
        `checks`: a list of `name`, `where`, `rows`, `failed`, `first`, `ok`, `says` (see `audit_tally.SENTENCES`);
        `counts`, `lengths`, `shares`, `texts`, `time`: see `lsvcr.data.audit_facts`; `stored_candidates`;
        `tokens`: see `doctor_texts.text_tokens`, None without an LLM; `prompts`: `doctor_texts.sample_tokens`;
        `sanity`: see `doctor_sanity.sanity`; `embeddings`: see `audit_vectors.audit_file`;
        `fitted`: `align` and `finetune`, setting -> value; `estimates`: `stage_one` (None without an LLM) and
        `stage_two`, see `doctor_estimates`; `warnings`: a list of `name`, `says`;
        `written`: the two files of `--write_config`, or None; `next`: commands to type.

    Raises:
        UserError: no such dataset, LLM or folder, or a folder that cannot be written to.
    """
    _check_settings(settings)
    dataset = open_dataset(settings.data)
    llm, tokenizer = open_tokenizer(settings.llm)
    checks = audit(dataset)
    report: dict[str, Any] = {
        "ok": False,
        "sound": not any(check.failed and check.is_basis for check in checks),
        "data": settings.data,
        "data_hash": dataset.data_hash,
        "split": dataset.manifest.get("split", {}).get("name"),
        "llm": llm,
        "checks": [check.to_json() for check in checks],
        **dict.fromkeys(("counts", "lengths", "shares", "texts", "time", "stored_candidates", "tokens")),
        **dict.fromkeys(("prompts", "fitted", "estimates", "written")),
        **{name: [] for name in ("sanity", "embeddings", "warnings", "next")},
    }
    if not report["sound"]:
        return report
    report |= _facts(dataset)
    report["tokens"] = None if tokenizer is None else text_tokens(dataset, tokenizer)
    report["sanity"] = sanity(dataset)
    report["embeddings"] = [
        part for folder in _vector_folders(settings) for part in audit_vectors(dataset, folder)
    ]
    align, finetune = _fit(report, dataset, tokenizer, settings)
    report["fitted"] = {"align": fit.values(align), "finetune": fit.values(finetune)}
    if settings.write_config:
        written = fit.write_configs(Path(settings.write_config), align, finetune)
        report["written"] = [str(path) for path in written]
    report["warnings"] = warnings(report)
    report["next"] = _next_commands(report, settings)
    report["ok"] = not _failures(report)
    return report


def failure(report: Mapping[str, Any]) -> str | None:
    """The sentence of the `UserError` that ends the command where the report is not `ok`."""
    failures = _failures(report)
    if not failures:
        return None
    more = f", and {len(failures) - 1} more of the kind" if len(failures) > 1 else ""
    return (
        f"{report['data']} is not sound: {failures[0]}{more}. Do not train on it: prepare or embed it again"
    )


def _failures(report: Mapping[str, Any]) -> list[str]:
    """A phrase for everything that must hold and does not."""
    found = [
        f"{check['where']} fails '{check['says']}' in {check['failed']:,} of {check['rows']:,} rows "
        f"(first: {check['first']})"
        for check in report["checks"]
        if not check["ok"]
    ]
    found += [
        f"the {row['scorer']} scorer does not get its known result on {Task(row['task']).label}, {row['protocol']}"
        for row in report["sanity"]
        if not row["ok"]
    ]
    for part in report["embeddings"]:
        where = f"{part['folder']}/{part['file']}"
        if part["problem"] is not None:
            found.append(f"{where}: {part['problem']}")
            continue
        if part["not_finite_rows"]:
            found.append(
                f"{where} has NaN or infinity in {part['not_finite_rows']:,} rows (first: {part['first_not_finite']})"
            )
        if part["made_for_this_data"] is False:
            found.append(f"{where} was made for another dataset or another state of this one")
        if part["as_described"] is False:
            found.append(f"{where} is not the file that the description beside it speaks of")
    return found


def _check_settings(settings: DoctorSettings) -> None:
    for name in ("tokens_per_second", "gflops"):
        if getattr(settings, name) <= 0:
            raise UserError(f"--{name} {getattr(settings, name)} must be above 0")


def _facts(dataset: Dataset) -> dict[str, Any]:
    options = dataset.manifest.get("options", {})
    return {
        "counts": audit_facts.counts(dataset),
        "lengths": audit_facts.lengths(dataset),
        "shares": audit_facts.shares(dataset),
        "texts": audit_facts.texts(dataset),
        "time": audit_facts.time_span(dataset),
        "stored_candidates": int(options.get("candidates", RankSettings.max_candidate_num)),
    }


def _vector_folders(settings: DoctorSettings) -> list[Path]:
    """The dataset's own folder and the one that is named, which may be a run folder with its best/."""
    if not settings.embeddings:
        return [Path(settings.data)]
    named = Path(settings.embeddings)
    if not named.is_dir():
        raise UserError(f"--embeddings {named} is no folder; give the one that holds photo_embs.npy")
    inner = [named / BEST_DIR] if (named / BEST_DIR).is_dir() else []
    return [Path(settings.data), named, *inner]


def _fit(
    report: dict[str, Any], dataset: Dataset, tokenizer: Any, settings: DoctorSettings
) -> tuple[fit.Fitted, fit.Fitted]:
    """Settings of both stages; `prompts` and `estimates` of the report are filled on the way."""
    align, finetune = fit.fit_align(report), fit.fit_finetune(report)

    def built() -> dict[str, Any]:
        return {} if tokenizer is None else sample_tokens(dataset, tokenizer, _align_settings(align))

    def estimated() -> dict[str, Any] | None:
        return estimates.stage_one(report, prompts, _align_settings(align), settings.tokens_per_second)

    fit.fit_prompts(align, built())
    prompts = built()
    fit.fit_time(align, estimated())
    report["prompts"] = prompts or None
    stage_one = estimated()
    if stage_one is not None:
        # The longest prompt, and as many tokens of texts beside it as a sample has on average.
        longest = max(
            part["tokens_a_sample"] - part["prompt"]["mean"] + part["prompt"]["max"]
            for part in prompts.values()
        )
        tokens = round(AlignSettings.per_device_train_batch_size * longest)
        stage_one["memory"] = stage_one_memory(load_config(report["llm"]), _align_settings(align), tokens)
    report["estimates"] = {
        "stage_one": stage_one,
        "stage_two": estimates.stage_two(
            report, replace(RankSettings(), **fit.values(finetune)), settings.gflops
        ),
    }
    return align, finetune


def _align_settings(fitted: fit.Fitted) -> AlignSettings:
    return replace(AlignSettings(), **fit.values(fitted))


def _next_commands(report: Mapping[str, Any], settings: DoctorSettings) -> list[str]:
    """Both stages and their table, with the fitted files where they were written."""
    data = shlex.quote(settings.data)
    if report["written"] is None:
        folder = f"ckpt/{Path(settings.data).resolve().name}-settings"
        first = [f"lsvcr doctor {data} --write_config {shlex.quote(folder)}"]
        align = finetune = f"DATASET_PATH={data}"
    else:
        first = []
        align, finetune = (f"--config {shlex.quote(path)}" for path in report["written"])
    tasks = [task for task in Task if report["counts"]["samples"][task.value]["test"]]
    return [
        *first,
        f"bash scripts/run_lora.sh OUTPUT_DIR=ckpt/LSVCR {align}",
        *(
            f"bash scripts/finetune.sh TASK={task.label} PRETRAIN_CKPT=ckpt/LSVCR "
            f"OUTPUT_DIR=ckpt/finetune/{task.label} {finetune}"
            for task in tasks
        ),
        f'lsvcr table --data {data} "both stages=ckpt/finetune"',
    ]
