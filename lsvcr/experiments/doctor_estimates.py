"""What both stages will take in memory and time: estimates from counts and one assumed speed each, never measured."""

from collections.abc import Mapping
from typing import Any

from lsvcr.losses.ranking import MAX_LOGITS
from lsvcr.models.sr import SRModel
from lsvcr.schema import Task
from lsvcr.settings import AlignSettings, RankSettings

FORWARD_ALONE = 6.5
"""So many times faster than training is reading without gradient (2,358 against 361 tokens a second, measured)."""

_FLOAT = 4


def stage_one(
    report: Mapping[str, Any],
    prompts: Mapping[str, Mapping[str, Any]],
    settings: AlignSettings,
    tokens_per_second: float,
) -> dict[str, Any] | None:
    """Tokens and hours of stage one; None where no tokens were counted.

    For each task: tokens an epoch = tokens a sample (mean over the samples built) x its training samples.
    Hours an epoch = their sum / `tokens_per_second` / 3600. Text vectors: every title and comment is read once,
    texts x mean tokens / (`FORWARD_ALONE` x `tokens_per_second`).

    Args:
        report: `counts` and `tokens`.
        prompts: `sample_tokens` under `settings`.
        settings: of the run.
        tokens_per_second: of all processes together, assumed.
    """
    if report["tokens"] is None or not prompts:
        return None
    tasks = {}
    for task, part in prompts.items():
        samples = report["counts"]["samples"][task]["train"]
        if settings.max_train_samples:
            samples = min(samples, settings.max_train_samples)
        tasks[task] = {
            "samples": samples,
            "tokens_a_sample": round(part["tokens_a_sample"]),
            "tokens_an_epoch": round(part["tokens_a_sample"] * samples),
        }
    total = sum(part["tokens_an_epoch"] for part in tasks.values())
    texts = sum(
        report["texts"][name]["texts"] * min(part["tokens"]["mean"], settings.max_text_length)
        for name, part in report["tokens"].items()
        if part["tokens"]
    )
    return {
        "tokens_per_second": tokens_per_second,
        "tasks": tasks,
        "tokens_an_epoch": total,
        "hours_an_epoch": total / tokens_per_second / 3600,
        "epochs": settings.num_train_epochs,
        "embed_tokens": round(texts),
        "embed_hours": texts / (FORWARD_ALONE * tokens_per_second) / 3600,
    }


def stage_two(report: Mapping[str, Any], settings: RankSettings, gflops: float) -> dict[str, Any]:
    """Parameters, bytes and minutes of stage two.

    - Parameters: (videos + 1) x hidden of the id table, and the SR model's, counted.
    - Training state: 16 bytes a parameter (weight, gradient and AdamW's two moments, float32).
    - Text table: (videos + comments + 2) x text_width x 4 bytes on disk, mapped into memory.
    - Scores: batch x (videos, neg_video_num, or batch) x 4 bytes; those of the whole catalogue go in blocks of 32 MiB,
      which are computed again in backward.
    - Operations a sample, forward and backward: 6 x (entries x half the SR model's parameters, as an entry passes
      one of its two sides; + hidden x scored videos; + videos x text_width x hidden / batch for the titles, which
      every step projects anew). Entries are those of padded histories, the longest allowed. CommRank scores
      neg_comment_num + 1 comments and projects the texts it sees, which is little.
    - Minutes an epoch: samples x operations / (`gflops` x 10^9) / 60.
    """
    videos, comments = report["counts"]["videos"], report["counts"]["comments"]
    batch, width = settings.per_device_train_batch_size, settings.hidden
    ids, body = (videos + 1) * width, _body(settings)
    whole = not settings.neg_video_num and settings.negative_sampler != "in_batch"
    scored = videos if whole else settings.neg_video_num or batch
    entries = sum(
        min(limit, _longest(report, side))
        for side, limit in (
            ("video_history", settings.max_phis_len),
            ("comment_history", settings.max_chis_len),
        )
    )
    titles = videos * settings.text_width * width / batch
    work = {
        Task.REC: entries * body / 2 + width * scored + (titles if whole else 0),
        Task.COMM_RANK: entries * body / 2 + width * (settings.neg_comment_num + 1),
    }
    samples = {task: report["counts"]["samples"][task.value]["train"] for task in Task}
    return {
        "gflops": gflops,
        "id_parameters": ids,
        "other_parameters": body,
        "training_state_bytes": 16 * (ids + body),
        "text_table_bytes": (videos + comments + 2) * settings.text_width * _FLOAT,
        "batch": batch,
        "scores_bytes": batch * scored * _FLOAT,
        "full_scores_bytes": batch * videos * _FLOAT,
        "scores_at_once_bytes": (min(batch * scored, MAX_LOGITS) if whole else batch * scored) * _FLOAT,
        "samples_a_second": {task.value: gflops * 1e9 / (6 * work[task]) for task in Task if samples[task]},
        "minutes_an_epoch": {
            task.value: samples[task] * 6 * work[task] / (gflops * 1e9) / 60 for task in Task if samples[task]
        },
    }


def _body(settings: RankSettings) -> int:
    """Parameters of the SR model without its id table."""
    model = SRModel.from_settings(settings, settings.max_position)
    return sum(parameter.numel() for parameter in model.parameters())


def _longest(report: Mapping[str, Any], side: str) -> int:
    tables = (report["lengths"][side][task.value]["train"] for task in Task)
    return max((table["max"] for table in tables if table is not None), default=0)
