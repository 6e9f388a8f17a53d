"""Settings of what measures and compares."""

from dataclasses import dataclass
from typing import Literal

from lsvcr.settings.fields import option


@dataclass
class EvaluateSettings:
    """Settings of `lsvcr evaluate`."""

    checkpoint: str = option("", "run folder of stage two or of `lsvcr train`, or its best/ or last/")
    data: str = option("", "prepared dataset")
    split: Literal["test", "val"] = option("test", "which samples to rank")
    protocol: Literal["all", "full", "sampled"] = option(
        "all",
        "candidates: the full catalogue (CommRank: the video's comments), those stored with the dataset, or all = one "
        "after the other",
    )
    metrics: str = option(
        "",
        "such as ndcg@10,map@20: recall, hr, precision, ndcg, mrr and map at any K; for Rec on the full catalogue also "
        "coverage, gini, novelty, arp and popularity_bias; empty = those of metrics.json",
    )
    filter_seen: bool = option(False, "Rec: videos of a user's history do not rank, unless one is the target")
    against: str = option(
        "",
        "another run folder: tell the difference, with paired tests; --data is needed where rows are not stored",
    )
    json: bool = option(False, "print one JSON object instead of a table")


@dataclass
class EvaluateLlmSettings:
    """Settings of `lsvcr evaluate-llm`."""

    run: str = option("", "stage-one run folder, with the text vectors of `lsvcr embed`")
    data: str = option("", "prepared dataset")
    task: Literal["Rec", "CommRank"] = option("Rec", "what is ranked")
    split: Literal["test", "val"] = option("test", "which samples to rank")
    max_rows: int = option(
        0, "rows, drawn once; 0 = all. Figures of drawn rows stand beside no figures of others"
    )
    seed: int = option(2024, "seed of the rows that are drawn")
    max_candidate_num: int = option(100, "candidates of the sampled protocol")
    model_name_or_path: str = option("", "LLM; empty = the one that the run was trained on")
    text_token_budget: int = option(
        0, "tokens (padding included) of a batch of prompts; 0 = 1024 on a CPU, 16384 on a GPU"
    )
    bf16: bool | None = option(None, "compute in bfloat16; auto: where the processor has instructions for it")
    out: str = option(
        "", "folder of figures and user vectors; empty = RUN/llm/SPLIT/TASK, or RUN/llm/SPLIT-ROWS-SEED/TASK"
    )
    overwrite: bool = option(False, "read the prompts again, also those that have been read")
    json: bool = option(False, "print one JSON object instead of a table")


@dataclass
class TableSettings:
    """Settings of `lsvcr table`, apart from its LABEL=FOLDER words."""

    data: str = option("", "prepared dataset that all runs were trained on")
    protocol: Literal["full", "sampled"] = option(
        "full",
        "candidates: the full catalogue (CommRank: the video's comments), or those stored with the dataset",
    )
    json: bool = option(False, "print one JSON object instead of a table")


@dataclass
class CompareSettings:
    """Settings of `lsvcr compare`."""

    data: str = option("", "prepared dataset")
    models: str = option(
        "all",
        "names with commas between them (`--models list` shows them), or NAME:CONFIG for another of its YAML files; "
        "all: what the data can serve",
    )
    out: str = option("", "folder of runs, logs and the comparison; the same command goes on in it")
    task: Literal["Rec", "CommRank"] = option("Rec", "what is ranked")
    seeds: int = option(3, "trained models a row, each of a seed of its own")
    seed: int = option(2024, "the first of the seeds, with which the search is done")
    trials: int = option(
        1, "settings that each model may try on validation (search: in its YAML file); 1 = no search"
    )
    jobs: int = option(1, "models that train at the same time, each with its share of the cores")
    epochs: int = option(0, "at most this many epochs for every model; 0 = as many as its settings say")
    aligned: str = option(
        "", "stage-one run for the rows of LSVCR; several with commas between them: one a seed, in turn"
    )
    llm: str = option(
        "",
        "causal LM of the rows generative and hllm: hub id, folder, GGUF file, smollm2-135m or tiny-random",
    )
    max_rows: int = option(
        0,
        "rows of validation and of test that the table is about, drawn once by --seed; 0 = all. The rows that ask an "
        "LLM read these alone",
    )
    untuned: str = option("", "folder of the untuned LLM's vectors (*_full_embs.npy); empty = the dataset")
    metric: str = option("ndcg@10", "validation metric that picks epochs, settings and the best baseline")
    metrics: str = option("recall@10,ndcg@10,mrr@10", "columns of the table")
    protocol: Literal["full", "sampled"] = option(
        "full",
        "candidates: the full catalogue (CommRank: the video's comments), or those stored with the dataset",
    )
    configs: str = option(
        "config",
        "folder with baselines/NAME.yaml, compare/lsvcr.yaml and so on, from where you are or of the checkout; what it "
        "lacks is taken from the checkout's config",
    )
    json: bool = option(False, "print one JSON object instead of a table")


@dataclass
class ClickReportSettings:
    """Settings of `lsvcr clicks-report`."""

    out: str = option("clicks.html", "the page; test AUC by epoch comes beside it as an SVG file")


@dataclass
class ReportSettings:
    """Settings of `lsvcr report`."""

    run: str = option("", "run folder of stage one or stage two, finished or not")
    out: str = option("", "HTML file to write; empty = report.html in the run folder")
    data: str = option("", "prepared dataset of the run; empty = the one that its settings name")
