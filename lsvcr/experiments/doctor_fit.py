"""Settings of both stages fitted to a dataset's figures, each with the reason, and their YAML files."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lsvcr.schema import Task
from lsvcr.settings import AlignSettings, RankSettings
from lsvcr.utils.arguments import load_settings
from lsvcr.utils.io import atomic_file

Fitted = dict[str, tuple[Any, str]]
"""Setting -> value and why."""

LONGEST_STAGE_ONE, LONGEST_STAGE_TWO = 20, 50
"""Entries of a history that are read at most (the published lengths)."""
LOGITS_BYTES = 2 << 30
"""Above this the softmax over the whole catalogue gives way to sampled negatives."""
SAMPLED_NEGATIVES = 8192
LONGEST_TEXT, LONGEST_PROMPT, LONGEST_RESPONSE = 64, 3840, 256
COLD_SHARE = 0.2
HOURS = 24.0
"""Stage one is cut to so many hours a pass over its samples."""

ALIGN_FILE, FINETUNE_FILE = "align.yaml", "finetune.yaml"


def fit_align(report: Mapping[str, Any]) -> Fitted:
    """Stage one's settings; those of prompts and time are added by `fit_prompts` and `fit_time`.

    Args:
        report: `data`, `llm`, `counts`, `lengths` and `tokens` of the doctor's report.
    """
    samples = sum(report["counts"]["samples"][task.value]["train"] for task in Task)
    fitted = _histories(report, LONGEST_STAGE_ONE, "attention over prompts is dear: at most 20, as published")
    longest = max(_p90(report, side, LONGEST_STAGE_TWO) for side in ("video_history", "comment_history"))
    fitted["max_position"] = (longest, "rows of the position tables; stage two uses as many")
    if not report["counts"]["samples"][Task.COMM_RANK.value]["train"]:
        fitted["tasks"] = ("Rec", "there are no CommRank training samples")
    if report["tokens"] is not None:
        fitted["model_name_or_path"] = (report["llm"], "the LLM whose tokens were counted")
        tokens = max(part["tokens"]["p99"] for part in report["tokens"].values() if part["tokens"])
        text = _round_up(max(tokens, 1), 8)
        fitted["max_text_length"] = (
            min(text, LONGEST_TEXT),
            f"99 % of the texts have at most {tokens} tokens",
        )
        fitted["max_target_length"] = (
            min(_round_up(tokens + 1, 8), LONGEST_RESPONSE),
            "a title or comment and its end",
        )
    _fit_schedule(fitted, samples)
    return _with_data(report, fitted)


def fit_prompts(fitted: Fitted, prompts: Mapping[str, Mapping[str, Any]]) -> None:
    """Add `max_source_length` to stage one's settings.

    Args:
        fitted: changed in place.
        prompts: `sample_tokens` under `fitted`.
    """
    if not prompts:
        return
    longest = max(part["prompt"]["max"] for part in prompts.values())
    room = _round_up(longest + fitted["max_text_length"][0] + 64, 64)
    fitted["max_source_length"] = (
        min(room, LONGEST_PROMPT),
        f"the longest of the prompts built has {longest} tokens; with room for a long title",
    )


def fit_time(fitted: Fitted, stage_one: Mapping[str, Any] | None) -> None:
    """Bound the samples of stage one where a pass over them takes more than `HOURS`.

    Args:
        fitted: changed in place.
        stage_one: the estimate over all samples.
    """
    if stage_one is None or stage_one["hours_an_epoch"] <= HOURS:
        return
    seconds = (
        sum(part["tokens_a_sample"] for part in stage_one["tasks"].values()) / stage_one["tokens_per_second"]
    )
    limit = max(1000, int(HOURS * 3600 / seconds) // 1000 * 1000)
    _fit_schedule(fitted, sum(min(limit, part["samples"]) for part in stage_one["tasks"].values()))
    fitted["max_train_samples"] = (
        limit,
        f"a task; all would take {stage_one['hours_an_epoch']:,.0f} hours a pass at "
        f"{stage_one['tokens_per_second']:g} tokens a second: raise it on a faster machine",
    )


def _fit_schedule(fitted: Fitted, samples: int) -> None:
    """Batch, epochs and checkpoints of stage one for so many samples of both tasks."""
    batch = AlignSettings.per_device_train_batch_size
    together = 128 if samples >= 64_000 else 32 if samples >= 8_000 else 8
    fitted["gradient_accumulation_steps"] = (
        together // batch,
        f"{together} samples an optimiser step for {samples:,} samples; divide by the number of processes",
    )
    fitted["num_train_epochs"] = (
        1 if samples >= 50_000 else 2 if samples >= 10_000 else 3,
        "fewer samples are seen more often",
    )
    steps = math.ceil(fitted["num_train_epochs"][0] * samples / together)
    fitted["save_steps"] = (min(1000, max(10, steps // 5)), f"of about {steps:,} steps; each save validates")


def fit_finetune(report: Mapping[str, Any]) -> Fitted:
    """Stage two's settings, the same for both tasks.

    Args:
        report: `data`, `counts`, `lengths` and `shares` of the doctor's report, and `stored_candidates`.
    """
    counts, samples = report["counts"], report["counts"]["samples"]
    most = max(samples[task.value]["train"] for task in Task)
    rows = min((samples[task.value]["val"] for task in Task if samples[task.value]["val"]), default=0)
    fitted = _histories(report, LONGEST_STAGE_TWO, "at most 50, as published")
    fitted["max_position"] = (
        max(fitted["max_phis_len"][0], fitted["max_chis_len"][0]),
        "the longer of both histories",
    )
    batch = min(512, max(64, 2 ** int(math.log2(max(1, most / 100)))))
    fitted["per_device_train_batch_size"] = (batch, f"100 steps an epoch or more for {most:,} samples")
    fitted["num_train_epochs"] = (
        50 if most < 100_000 else 20 if most < 1_000_000 else 10,
        "at most; training stops when validation no longer gains",
    )
    k = 20 if rows < 1_000 else 10 if rows < 10_000 else 5
    fitted["metric_for_best_model"] = (f"ndcg@{k}", f"{rows:,} validation rows: fewer rows need more places")
    if batch * counts["videos"] * 4 > LOGITS_BYTES:
        fitted["neg_video_num"] = (
            min(SAMPLED_NEGATIVES, counts["videos"]),
            f"scores of {batch} samples against {counts['videos']:,} videos would take "
            f"{batch * counts['videos'] * 4 / 2**30:.1f} GB",
        )
    cold = report["shares"]["cold_videos"] or 0.0
    if cold >= COLD_SHARE:
        fitted["min_id_count"] = (
            5,
            f"{cold:.0%} of the videos are cold: as negatives they would learn an id that says no",
        )
    watched = report["lengths"]["comments_of_a_watched_video"]
    if watched is not None and watched["p50"] <= RankSettings.neg_comment_num:
        fitted["fill_up_comments"] = (
            False,
            f"half of the watched videos have {watched['p50']} comments or fewer: negatives of other videos would "
            "teach which comment belongs to the video",
        )
    stored = report["stored_candidates"]
    if 2 <= stored < RankSettings.max_candidate_num:
        fitted["max_candidate_num"] = (stored, "as many as are stored with the dataset")
    return _with_data(report, fitted)


def values(fitted: Fitted) -> dict[str, Any]:
    """The settings without their reasons."""
    return {name: value for name, (value, _) in fitted.items()}


def write_configs(folder: Path, align: Fitted, finetune: Fitted) -> tuple[Path, Path]:
    """Write both files, read them as the programs will, and check the settings as they do.

    Raises:
        UserError: the folder cannot be written to, or a setting is not legal.
    """
    from lsvcr.training import align_build, rank_setup

    stage_one, stage_two = folder / ALIGN_FILE, folder / FINETUNE_FILE
    _write(stage_one, "Stage one", f"bash scripts/run_lora.sh --config {stage_one}", align)
    _write(stage_two, "Stage two", f"bash scripts/finetune.sh TASK=Rec --config {stage_two}", finetune)
    align_build.check_settings(load_settings(AlignSettings, stage_one))
    rank_setup.check_settings(load_settings(RankSettings, stage_two))
    return stage_one, stage_two


def _write(path: Path, stage: str, command: str, fitted: Fitted) -> None:
    import yaml

    lines = [
        f"# {stage}, fitted by `lsvcr doctor` to the data; what is left out keeps its default.",
        f"#   {command}",
    ]
    for name, (value, why) in fitted.items():
        lines += [f"# {why[0].upper()}{why[1:]}.", yaml.safe_dump({name: value}, allow_unicode=True).strip()]
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _histories(report: Mapping[str, Any], cap: int, why: str) -> Fitted:
    return {
        flag: (
            _p90(report, side, cap),
            f"9 of 10 training samples have at most {_p90(report, side, 1 << 30)} {entries}; {why}",
        )
        for flag, side, entries in (
            ("max_phis_len", "video_history", "videos behind them"),
            ("max_chis_len", "comment_history", "comment entries behind them"),
        )
    }


def _p90(report: Mapping[str, Any], side: str, cap: int) -> int:
    """The 90 % quantile of a history over training samples, of the task that has more; 1 to `cap`."""
    tables = (report["lengths"][side][task.value]["train"] for task in Task)
    return min(cap, max([1, *(table["p90"] for table in tables if table is not None)]))


def _with_data(report: Mapping[str, Any], fitted: Fitted) -> Fitted:
    return {
        "data_path": (str(Path(report["data"]).resolve()), "the dataset these settings are for"),
        **fitted,
    }


def _round_up(value: int, step: int) -> int:
    return -(-int(value) // step) * step
