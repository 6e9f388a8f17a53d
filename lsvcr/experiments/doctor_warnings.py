"""Sentences about what makes this data hard or a figure on it doubtful: what, how much, and the remedy."""

from collections.abc import Iterator, Mapping
from typing import Any

from lsvcr.experiments.doctor_fit import COLD_SHARE, HOURS, LOGITS_BYTES, LONGEST_STAGE_TWO, SAMPLED_NEGATIVES
from lsvcr.schema import Task
from lsvcr.settings import AlignSettings

FEW_ROWS = 500
TIES, NO_ORDER = 0.05, 0.5
SHARED_TITLES, EMPTY_TEXTS, LONG_TEXTS = 0.1, 0.05, 0.05
UNSEEN, ONE_CANDIDATE, REPEATS, NO_COMMENTS, CONCENTRATED = 0.2, 0.1, 0.2, 0.5, 0.5
SHARED_VECTORS, ALIKE = 0.01, 0.99
LONGEST_HISTORY = 200
"""No warning asks to read more entries than this."""

Warned = Iterator[tuple[str, str]]


def warnings(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every warning of a whole report as `name` and `says`.

    Args:
        report: all but `warnings` of what `diagnose` gives.
    """
    parts = (_rows, _times, _texts, _catalogue, _clicks, _lengths, _cost, _vectors)
    return [{"name": name, "says": says} for part in parts for name, says in part(report)]


def _rows(report: Mapping[str, Any]) -> Warned:
    for task in Task:
        rows = report["counts"]["samples"][task.value]["test"]
        if task is Task.COMM_RANK and not rows:
            yield (
                "no_comm_rank_test",
                "CommRank has no test rows: this dataset serves Rec alone; train with TASK=Rec, and stage one "
                "with --tasks Rec",
            )
        elif rows < FEW_ROWS:
            yield (
                f"few_{task.value}_test_rows",
                f"{task.label} has {rows:,} test rows, fewer than {FEW_ROWS}: intervals will be wide; prepare more "
                "data (a lower --user_core keeps more users) and compare several seeds",
            )
    single = report["shares"]["comm_rank_rows_with_one_candidate"]["test"] or 0.0
    if single > ONE_CANDIDATE:
        yield (
            "one_candidate",
            f"{single:.0%} of the CommRank test rows have one candidate, which any model ranks first; read CommRank's "
            "figures beside popularity's (lsvcr table), not by their height",
        )


def _times(report: Mapping[str, Any]) -> Warned:
    for sentence in report["time"]["outside"]:
        yield "no_calendar_times", sentence
    ties = report["shares"]["likes_at_the_time_of_the_one_before"] or 0.0
    temporal = (
        ""
        if report["split"] == "temporal"
        else ", or prepare with --split temporal, which keeps ties together"
    )
    if ties > NO_ORDER:
        yield (
            "hardly_any_order",
            f"{ties:.0%} of the likes have the same time as the one before: the order of a history is mostly that of "
            f"the file; bring finer times{temporal}",
        )
    elif ties > TIES:
        yield (
            "many_ties",
            f"{ties:.0%} of the likes have the same time as the one before, and none of them is in the other's "
            f"history; bring finer times{temporal}",
        )
    repeats = report["shares"]["repeated_likes_of_raw"] or 0.0
    if repeats > REPEATS:
        yield (
            "repeats",
            f"{repeats:.0%} of the raw likes repeat an earlier one and were left out: only first likes are targets, "
            "so the figures speak of new videos only; judge what people come back to by a rule of its own, such as "
            "latest first",
        )


def _texts(report: Mapping[str, Any]) -> Warned:
    titles, comments = report["texts"]["titles"], report["texts"]["comments"]
    shared = titles["shared_with_another"] or 0.0
    if shared > SHARED_TITLES:
        top = titles["most_repeated"][0]
        yield (
            "shared_titles",
            f"{shared:.0%} of the videos share their title with another (most often {top['text']!r}, "
            f"{top['times']:,} times): text cannot tell them apart; keep ids (--disable_id False, --min_id_count 0) or "
            "put more into the titles before `lsvcr prepare`",
        )
    for name, part, flag in (
        ("titles", titles, "--min_id_count 0"),
        ("comments", comments, "--disable_comments"),
    ):
        empty = part["empty"] or 0.0
        if empty > EMPTY_TEXTS:
            yield (
                f"empty_{name}",
                f"{empty:.0%} of the {name} are empty, with a zero text vector; try finetune.py with {flag}",
            )
    bare = report["shares"]["videos_without_comments"] or 0.0
    if bare > NO_COMMENTS:
        yield (
            "videos_without_comments",
            f"{bare:.0%} of the videos have no comments: compare a run with --disable_comments",
        )


def _catalogue(report: Mapping[str, Any]) -> Warned:
    shares = report["shares"]
    cold = shares["cold_videos"] or 0.0
    if cold >= COLD_SHARE:
        yield (
            "cold_videos",
            f"{cold:.0%} of the videos have fewer than 5 training interactions: give them no id (finetune.py "
            "--min_id_count 5) and look at the cold slice",
        )
    unseen = shares["unseen_test_targets"][Task.REC.value] or 0.0
    if unseen > UNSEEN:
        yield (
            "unseen_targets",
            f"{unseen:.0%} of Rec's test targets have no training interaction: ids know nothing of them, only text "
            "does; `lsvcr prepare --video_core 5` would leave such videos out",
        )
    top = shares["likes_on_the_top_videos"] or 0.0
    if top > CONCENTRATED:
        yield (
            "popularity",
            f"{top:.0%} of the likes fall on 1 % of the videos: popularity will be hard to beat; set it beside every "
            "run with `lsvcr table`",
        )


def _clicks(report: Mapping[str, Any]) -> Warned:
    clicked = report["shares"]["clicked_impressions"]
    if clicked in (0, 1):
        which = "Every impression is" if clicked else "No impression is"
        yield (
            "clicks_all_alike",
            f"{which} a click, so that a click model has nothing to learn; prepare again with another --click_signal",
        )


def _lengths(report: Mapping[str, Any]) -> Warned:
    for name, part in (report["tokens"] or {}).items():
        longer = part["longer_than_max_text_length"] or 0.0
        if longer > LONG_TEXTS:
            wanted = -(-int(part["tokens"]["p99"]) // 8) * 8
            yield (
                f"long_{name}",
                f"{longer:.0%} of the {name} have more than {AlignSettings.max_text_length} tokens and lose their end; "
                f"99 % fit into --max_text_length {wanted} (train.py and `lsvcr embed`)",
            )
    for side, flag in (("video_history", "--max_phis_len"), ("comment_history", "--max_chis_len")):
        tables = [report["lengths"][side][task.value]["train"] for task in Task]
        longest = max((table["p90"] for table in tables if table is not None), default=0)
        if longest > LONGEST_STAGE_TWO:
            wanted = min(longest, LONGEST_HISTORY)
            yield (
                f"long_{side}",
                f"1 in 10 training samples has a {side.replace('_', ' ')} of {longest:,} or more, of which the latest "
                f"{LONGEST_STAGE_TWO} are read; finetune.py {flag} {wanted} --max_position {wanted} reads more, for "
                "more time and memory",
            )


def _cost(report: Mapping[str, Any]) -> Warned:
    two = report["estimates"]["stage_two"]
    if two["full_scores_bytes"] > LOGITS_BYTES:
        yield (
            "scores",
            f"a batch of {two['batch']} scored against all videos takes {two['full_scores_bytes'] / 2**30:.1f} GB, in "
            f"blocks that are computed twice; finetune.py --neg_video_num {SAMPLED_NEGATIVES} samples instead",
        )
    fitted = report["fitted"]["align"].get("max_train_samples")
    if fitted is not None:
        yield (
            "stage_one_time",
            f"a pass of stage one over all samples takes more than {HOURS:.0f} hours at "
            f"{report['estimates']['stage_one']['tokens_per_second']:g} tokens a second; train.py "
            f"--max_train_samples {fitted}, fewer layers (--llm_layers), or GPUs (then give --tokens_per_second)",
        )


def _vectors(report: Mapping[str, Any]) -> Warned:
    for part in report["embeddings"]:
        if part["problem"] is not None:
            continue
        where, again = f"{part['folder']}/{part['file']}", "run `lsvcr embed` again"
        if part["zero_rows"]:
            yield (
                "zero_vectors",
                f"{where}: {part['zero_rows']:,} texts have a zero vector (first row {part['first_zero']}); {again}",
            )
        if part["rows_that_should_be_zero"]:
            yield (
                "vectors_without_text",
                f"{where}: {part['rows_that_should_be_zero']:,} rows without text are not zero; {again}",
            )
        if (part["shared_by_different_texts"] or 0.0) > SHARED_VECTORS:
            yield (
                "shared_vectors",
                f"{where}: {part['shared_by_different_texts']:.0%} of the different texts have no vector of their own; "
                f"{again} with a longer --max_text_length",
            )
        if (part["mean_cosine"] or 0.0) > ALIKE:
            yield (
                "collapsed_vectors",
                f"{where}: vectors have a mean cosine of {part['mean_cosine']:.3f} to their mean, so texts look alike; "
                "train stage one with a lower --learning_rate",
            )
