"""The process of a row that is made of an LLM: prompts read by stage one's, titles said and grounded, HLLM trained."""

import gc
import math
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from lsvcr.baselines.alpaca import RecordSource
from lsvcr.baselines.generations import Speaker, dataset_of, generate, read_generations
from lsvcr.baselines.generative import tune
from lsvcr.baselines.generative_settings import GenerateSettings, GroundSettings, SpokenSettings, TuneSettings
from lsvcr.baselines.generative_state import read_run
from lsvcr.baselines.grounding_rank import Ranking, choose_gammas, measure, rankings
from lsvcr.baselines.grounding_titles import TitleIndex
from lsvcr.data.store import Dataset
from lsvcr.evaluation.metrics import DEFAULT_METRICS
from lsvcr.evaluation.protocol import FULL, Protocol
from lsvcr.evaluation.result import Result, load_rows, save_rows
from lsvcr.experiments.compare_job import ALIGNED_LLM, VALIDATION_FILE, Job
from lsvcr.experiments.ground import drawn_of, grounds_of
from lsvcr.llm.lora import WEIGHTS_FILE
from lsvcr.schema import ADAPTER_DIR, BEST_DIR, LAST_DIR, MANIFEST_FILE, METRICS_FILE, TRAINER_FILE, Split
from lsvcr.settings import EvaluateLlmSettings, HllmSettings
from lsvcr.training.hllm import hllm
from lsvcr.training.llm_rank import evaluate_llm
from lsvcr.training.rank_state import ROWS_FILE
from lsvcr.training.schedule import learning_rate_factor
from lsvcr.utils.io import read_json, write_json
from lsvcr.utils.precision import compute_dtype

_ALONE = ("popularity", "collaborative")
"""Rankings that hear nothing of what was said."""
_TIMED_ROWS = 16
"""Prompts that are answered to tell the time of one."""


def ask_llm(job: Job) -> dict[str, Any]:
    """Rows of validation and test in the job's folder, and its outcome; an interrupted job goes on.

    Raises:
        UserError: whatever tuning, generation or reading refuses.
    """
    return _aligned(job) if job.kind == ALIGNED_LLM else _generative(job)


def train_hllm(job: Job) -> dict[str, Any]:
    """Train HLLM with both its LLMs and test it; an interrupted training goes on. Returns the outcome.

    Raises:
        UserError: whatever training refuses.
    """
    hllm(HllmSettings(**{**job.settings, "output_dir": str(job.run)}))
    gc.collect()  # validation loads the LLMs anew
    manifest = read_json(job.run / BEST_DIR / MANIFEST_FILE)
    standing = read_json(job.run / LAST_DIR / TRAINER_FILE)
    return {
        "seconds": standing["seconds"] + standing["window"]["seconds"],
        "parameters": manifest["trained_parameters"],
        "epoch": manifest["progress"]["epoch"],
    }


def _metrics(job: Job) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*DEFAULT_METRICS, job.metric)))


def _aligned(job: Job) -> dict[str, Any]:
    asked = EvaluateLlmSettings(**job.settings)
    validation = job.folder / "validation"
    evaluate_llm(replace(asked, split="val", out=str(validation)), _metrics(job))
    report = evaluate_llm(replace(asked, split="test", out=str(job.run)), _metrics(job))
    save_rows(job.folder / VALIDATION_FILE, load_rows(validation / ROWS_FILE.format(name=job.protocol)))
    folder = Path(report["checkpoint"]["path"])
    manifest = read_json(folder / MANIFEST_FILE)
    trainer = folder.parent / LAST_DIR / TRAINER_FILE
    known = folder.name == BEST_DIR and trainer.is_file()
    return {
        "seconds": read_json(trainer)["seconds"] if known else None,
        "parameters": manifest.get("trained_parameters", 0),
        "epoch": manifest.get("epoch"),
        "answer_ms": report["reading"]["ms_a_row"],
        "detail": "a model a stage-one run; training and parameters are those of stage one",
    }


def _generative(job: Job) -> dict[str, Any]:
    asked = SpokenSettings(**job.settings)
    tuned = replace(TuneSettings(**_shared(TuneSettings, job.settings)), output_dir=str(job.run))
    tune(tuned, learning_rate_factor)
    asking = GenerateSettings(
        **_shared(GenerateSettings, job.settings, "seed"),
        run=str(job.run),
        seed=asked.rows_seed,
        num_return_sequences=asked.num_beams,
    )
    generate(asking)
    checkpoint, manifest = read_run(job.run)
    dataset = dataset_of(tuned.data_path, manifest)
    detail = _ground(job, asked, manifest, dataset)
    gc.collect()
    return {
        "seconds": read_json(job.run / LAST_DIR / MANIFEST_FILE)["progress"]["seconds"],
        "parameters": numbers_in(checkpoint / ADAPTER_DIR / WEIGHTS_FILE),
        "epoch": manifest["progress"]["epoch"],
        "answer_ms": _speaking_ms(checkpoint, tuned, asking, dataset),
        "detail": detail,
    }


def numbers_in(file: Path) -> int:
    """How many numbers a safetensors file holds, of whatever type: NumPy cannot read bfloat16."""
    with safe_open(str(file), framework="numpy") as weights:
        names = weights.keys()
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in names)


def _shared(kind: type, values: Mapping[str, Any], *but: str) -> dict[str, Any]:
    """The settings that `kind` has, too."""
    return {f.name: values[f.name] for f in fields(kind) if f.name in values and f.name not in but}


def _ground(job: Job, asked: SpokenSettings, manifest: Mapping[str, Any], dataset: Dataset) -> str:
    """Rank in every way; keep the rows of that which is best on validation, and say which."""
    settings = GroundSettings(run=str(job.run), decoding=asked.decoding, bf16=asked.bf16)
    generated, made = read_generations(job.run / asked.decoding)
    index = TitleIndex(dataset.titles())
    grounds = grounds_of(settings, asked.model_name_or_path, manifest, dataset, generated, index)
    ways = {
        name: way
        for name, way in rankings(settings.rrf_k).items()
        if not way.collaborative and name not in _ALONE
    }
    gammas = {name: curve.chosen for name, curve in choose_gammas(grounds[Split.VAL], ways).items()}
    protocols = {"full": FULL, "sampled": Protocol("sampled", asked.max_candidate_num)}

    def measured(split: Split, asked_ways: Mapping[str, Ranking]) -> dict[str, dict[str, Result]]:
        drawn = drawn_of(dataset, generated, made, split)
        return measure(grounds[split], asked_ways, gammas, drawn, protocols, _metrics(job))

    validation = {name: found[job.protocol] for name, found in measured(Split.VAL, ways).items()}
    values = {name: result.mean(job.metric) or 0.0 for name, result in validation.items()}
    best = max(values, key=lambda name: values[name])
    save_rows(job.folder / VALIDATION_FILE, validation[best])
    tests = measured(Split.TEST, {best: ways[best]})[best]
    for name, result in tests.items():
        save_rows(job.run / ROWS_FILE.format(name=name), result)
    report = {"ranking": best, "formula": ways[best].about, "gamma": gammas, "validation": values}
    told = {name: result.summary() for name, result in tests.items()}
    write_json(job.run / METRICS_FILE, {"kind": "grounding", **report, "protocols": told})
    gamma = f", gamma {gammas[best]:g}" if best in gammas else ""
    return (
        f"ranking {best} ({ways[best].about}{gamma}), the best of {len(ways)} by {job.metric} on validation"
    )


def _speaking_ms(checkpoint: Path, tuned: TuneSettings, asking: GenerateSettings, dataset: Dataset) -> float:
    """Milliseconds of one prompt, from history to beams."""
    speaker = Speaker(checkpoint, tuned, asking, dataset, compute_dtype(asking.bf16))
    source = RecordSource(dataset, tuned)
    rows = source.rows(Split.TEST, _TIMED_ROWS)
    started = time.perf_counter()
    answered = sum(1 for _ in speaker.say(source, Split.TEST, np.asarray(rows)))
    return 1000 * (time.perf_counter() - started) / max(1, answered)
