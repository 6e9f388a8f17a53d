"""Every default of every command, as dataclasses. One field is one flag.

Field names are the reference's flag names where it has one, so that a command written
for it runs here unchanged. `lsvcr.utils.arguments` turns flags and YAML into these.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


def option(default: Any, help_text: str) -> Any:
    """A dataclass field with its `--help` line."""
    return field(default=default, metadata={"help": help_text})


@dataclass
class SimulateSettings:
    """Settings of `lsvcr simulate`."""

    out: str = option("", "folder that receives the five CSV files and the planted truth")
    preset: Literal["tiny", "demo", "large"] = option("demo", "size of the world")
    language: Literal["en", "zh"] = option("en", "language of titles and comments")
    seed: int = option(2024, "seed of the whole world")


@dataclass
class PrepareSettings:
    """Settings of `lsvcr prepare`."""

    source: Literal["kuaicomt", "microlens", "amazon", "movielens", "tables", "official"] = option(
        "kuaicomt", "raw format (docs/data.md has an example of each)"
    )
    raw: str = option("", "folder with the raw files")
    out: str = option("", "folder of the prepared dataset")
    split: Literal["leave-last", "temporal"] = option("leave-last", "how val and test are cut")
    val_share: float = option(0.1, "temporal split: share of events in validation")
    test_share: float = option(0.1, "temporal split: share of events in test")
    user_core: int = option(5, "keep users with at least this many liked videos")
    video_core: int = option(0, "keep videos with at least this many likes (0 keeps cold ones)")
    min_history: int = option(1, "earliest event of a user that becomes a target has this many before it")
    signals: str = option("is_like", "kuaicomt: columns that count as liking a video, separated by commas")
    comment_signals: str = option(
        "is_like,is_reply", "kuaicomt: columns that count as an interaction with a comment"
    )
    min_rating: float = option(3.5, "movielens, amazon: ratings at or above this count as a like")
    columns: str = option("", "tables: YAML file that names files and columns; empty = columns.yaml in --raw")
    candidates: int = option(100, "stored evaluation candidates of a sample")
    seed: int = option(2024, "seed of the stored candidates")
    skip_bad_rows: bool = option(False, "count and list broken rows instead of stopping")


@dataclass
class ExportOfficialSettings:
    """Settings of `lsvcr export-official`."""

    data: str = option("", "prepared dataset")
    out: str = option("", "folder to write; an earlier export there is replaced")
    max_history: int = option(0, "latest entries of each history that a sample shows; 0 = all")
    embeddings: str = option(
        "", "folder with photo_embs.npy and comment_embs.npy to add; empty = the dataset's, if any"
    )


@dataclass
class ExportSettings:
    """Settings of `lsvcr export`."""

    checkpoint: str = option("", "stage-two run folder for Rec or CommRank, or its best/ or last/")
    other: str = option("", "one for the other task; empty = the bundle answers one task")
    data: str = option("", "prepared dataset that they were trained on")
    out: str = option("", "bundle folder to write; an earlier bundle there is replaced")
    rows: Literal["float32", "float16", "int8"] = option(
        "float32", "how the vectors of videos and comments are stored"
    )
    quantize: Literal["none", "int8"] = option(
        "none",
        "int8: the encoder computes in 8 bits, and --rows is int8; what that costs is measured and told",
    )
    with_users: bool = option(
        False, "add every user's histories and liked videos, so that a request may name a user: personal data"
    )
    text_encoder: bool = option(
        False,
        "add an encoder for titles and comments that come later, fitted to the text vectors of the dataset",
    )
    ann_from: int = option(
        2_000_000, "videos from which an approximate index answers (its recall is measured); 0 = never"
    )
    verify_rows: int = option(
        0,
        "test samples that the bundle must answer as the checkpoint does before it is put in place; 0 = all",
    )


@dataclass
class DoctorSettings:
    """Settings of `lsvcr doctor`."""

    data: str = option("", "prepared dataset")
    llm: str = option(
        "auto",
        "count text lengths in this LLM's tokens: smollm2-135m, tiny-random, a folder, a .gguf file, a hub id or none; "
        "auto = smollm2-135m where its package is installed",
    )
    embeddings: str = option("", "folder of text vectors to audit too, such as a stage-one run")
    write_config: str = option("", "folder that receives align.yaml and finetune.yaml fitted to the data")
    tokens_per_second: float = option(
        360.0, "assumed speed of stage one (360: SmolLM2-135M with LoRA on 2 CPU cores)"
    )
    gflops: float = option(30.0, "assumed speed of stage two in 10^9 operations a second (30: 2 CPU cores)")
    json: bool = option(False, "print one JSON object instead of a report")


@dataclass
class ReportSettings:
    """Settings of `lsvcr report`."""

    run: str = option("", "run folder of stage one or stage two, finished or not")
    out: str = option("", "HTML file to write; empty = report.html in the run folder")
    data: str = option("", "prepared dataset of the run; empty = the one that its settings name")


@dataclass
class SRSettings:
    """Shape of the SR model (METHOD: LSVCR paper, section 3; published sizes)."""

    hidden: int = option(64, "width d of the SR model")
    layers: int = option(2, "layers of each history encoder")
    heads: int = option(2, "attention heads")
    inner: int = option(256, "inner width of the feed-forward layers")
    dropout: float = option(0.3, "dropout on hidden states")
    attention_dropout: float = option(0.3, "dropout on attention weights")
    text_width: int = option(256, "width e of a title's or comment's text vector")
    temperature: float = option(0.07, "temperature of every cosine score")
    start_near_identity: bool = option(
        True,
        "fresh user vectors lie near the user's history; False: all weights start as noise, as published",
    )


@dataclass
class AlignSettings(SRSettings):
    """Settings of stage one (`train.py`)."""

    model_name_or_path: str = option("smollm2-135m", "hub id, folder, GGUF file, smollm2-135m or tiny-random")
    data_path: str = option("./data", "prepared dataset")
    output_dir: str = option("./ckpt/LSVCR", "run folder; holds best/ and last/")
    seed: int = option(2024, "seed of order, augmentation and initialisation")
    per_device_train_batch_size: int = option(2, "samples a process and micro-step")
    per_device_eval_batch_size: int = option(8, "validation samples a process and step")
    gradient_accumulation_steps: int = option(1, "micro-steps of one optimiser step")
    dataloader_num_workers: int = option(0, "worker processes that build batches")
    learning_rate: float = option(3e-4, "peak learning rate of LoRA and head parameters")
    sr_learning_rate: float = option(0.0, "peak learning rate of SR model and heads; 0 = learning_rate")
    num_train_epochs: float = option(1.0, "passes over the training samples")
    max_steps: int = option(-1, "stop after this many optimiser steps; -1 = by epochs")
    max_train_samples: int = option(0, "use this many training samples a task, drawn once; 0 = all")
    warmup_ratio: float = option(0.03, "share of steps with rising learning rate")
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = option("cosine", "after warm-up")
    weight_decay: float = option(0.0, "AdamW weight decay")
    max_grad_norm: float = option(1.0, "clip the gradient at this norm; 0 = never")
    bf16: bool | None = option(None, "compute in bfloat16; auto: where the processor has instructions for it")
    gradient_checkpointing: bool = option(True, "recompute activations: less memory, more time")
    recompute: Literal["selective", "full"] = option(
        "selective",
        "what gradient_checkpointing computes anew: full = whole layers (least memory); "
        "selective = norms, activations, gates and dropout (faster)",
    )
    deepspeed: str = option("config/ds_z2_bf16.json", "DeepSpeed configuration")
    ddp_timeout: int = option(1800, "seconds a process waits for the others before the run is given up")
    lora: bool = option(True, "LoRA adapters; False trains only SR model and heads on the frozen LLM")
    lora_r: int = option(8, "LoRA rank")
    lora_alpha: int = option(32, "LoRA alpha")
    lora_dropout: float = option(0.1, "LoRA dropout")
    load_in_4bit: bool = option(
        False, "keep the frozen LLM in 4 bits (QLoRA; needs CUDA and the package bitsandbytes)"
    )
    llm_layers: int = option(0, "use the first N layers of the LLM; 0 = all")
    language: Literal["en", "zh"] = option("en", "language of the prompts")
    tasks: Literal["both", "Rec", "CommRank"] = option("both", "which samples to train on")
    max_phis_len: int = option(20, "latest videos of the video history")
    max_chis_len: int = option(20, "latest entries of the comment history")
    max_position: int = option(50, "rows of the position tables")
    max_source_length: int = option(3840, "tokens of a prompt; the oldest entries go first")
    max_target_length: int = option(256, "tokens of a response")
    max_text_length: int = option(64, "tokens of one title or comment in the text branch")
    text_token_budget: int = option(
        0, "tokens (padding included) of one text batch; 0 = 512 on a CPU, 16384 on a GPU"
    )
    lm_loss_weight: float = option(1.0, "weight of the language-model loss")
    rec_loss_weight: float = option(1.0, "weight of the recommendation loss")
    contrast_loss_weight: float = option(0.5, "weight of behaviour and preference contrast")
    contrast_batch: int = option(
        0,
        "samples of all processes that the contrastive losses compare, over several micro-steps (exact, one more "
        "forward pass); 0 = those of one micro-step",
    )
    head_start_epochs: int = option(
        0, "epochs that SR model and head first train on untuned vectors; 0 = none"
    )
    head_start_taste_steps: int = option(
        0, "steps of the taste contrast on untuned vectors before the head start's epochs; 0 = none"
    )
    head_start_learning_rate: float = option(1e-3, "learning rate of the head start")
    head_start_vectors: str = option(
        "", "folder with the untuned *_full_embs.npy for head start and wide batches; empty = the dataset's"
    )
    wide_titles: int = option(
        0,
        "titles that all processes together read a micro-step for wide Rec batches (from untuned vectors); 0 = none",
    )
    taste_texts: int = option(
        0,
        "titles and comments that all processes together read a micro-step for the taste contrast (from untuned "
        "vectors); 0 = none",
    )
    wide_samples: int = option(8, "most samples (taste contrast: people) of one text in a wide batch")
    wide_loss_weight: float = option(1.0, "weight of the wide Rec batches")
    taste_loss_weight: float = option(1.0, "weight of the taste contrast")
    random_positions: bool = option(True, "train on random increasing positions; False: on 0, 1, 2, ...")
    augment: bool = option(True, "show the LLM and the SR model different comments of a video")
    save_strategy: Literal["steps", "epoch", "no"] = option("steps", "when last/ is written")
    save_steps: int = option(1000, "optimiser steps between checkpoints")
    save_total_limit: int = option(
        0, "newest checkpoints that are kept (step-NNNNNN/ beside last/); 0 or 1 = last/ and best/ alone"
    )
    eval_steps: int = option(0, "optimiser steps between validations; 0 = with every checkpoint")
    eval_pool: int = option(128, "validation samples a task in the fixed pool")
    load_best_model_at_end: bool = option(
        True, "finish with the best checkpoint in best/; False: the last one"
    )
    logging_steps: int = option(10, "optimiser steps between log lines")
    report_to: Literal["tensorboard", "none"] = option("tensorboard", "where curves go")
    resume: bool = option(True, "continue an interrupted run found in output_dir")
    dry_run: bool = option(
        False, "tell samples, tokens, steps, memory and time, from shapes and three steps; write nothing"
    )


@dataclass
class ConvertSettings:
    """Settings of `lsvcr convert`."""

    checkpoint: str = option(
        "", "official adapter_model.bin, peft adapter on a legacy ChatGLM, or their folder"
    )
    out: str = option("", "folder to write: a stage-one run, or a peft adapter if there is only LoRA")
    model_name_or_path: str = option("", "LLM that the checkpoint was trained on")
    heads: int = option(2, "attention heads of the SR model, which its weights do not tell")
    max_text_length: int = option(64, "tokens of one title or comment in its text branch")
    lora_alpha: int = option(32, "LoRA alpha, where no adapter_config.json beside the checkpoint says it")


@dataclass
class EmbedSettings:
    """Settings of `lsvcr embed`."""

    data_path: str = option("./data", "prepared dataset")
    checkpoint: str = option("none", "stage-one run folder; none = the untuned LLM's own mean-pooled states")
    model_name_or_path: str = option("", "LLM; empty = the one the checkpoint was trained on")
    llm_layers: int = option(0, "with checkpoint none: use the first N layers; 0 = all")
    output_dir: str = option("", "folder of the .npy files; empty = beside the checkpoint, or the dataset")
    full: bool = option(False, "also write the LLM's own mean-pooled states (*_full_embs.npy)")
    max_text_length: int = option(0, "tokens of one title or comment; 0 = as in stage one, else 64")
    text_token_budget: int = option(
        0, "tokens (padding included) of a batch; 0 = 1024 on a CPU, 16384 on a GPU"
    )
    bf16: bool | None = option(None, "compute in bfloat16; auto: where the processor has instructions for it")
    only_new: bool = option(
        False,
        "take the vectors of unchanged titles and comments from an earlier export, read only the others",
    )
    earlier_dir: str = option("", "with --only_new: folder of the earlier export; empty = output_dir")
    overwrite: bool = option(False, "make files again that are finished and up to date")
    load_in_4bit: bool | None = option(
        None, "keep the LLM in 4 bits; auto: as in stage one, where this machine can"
    )


@dataclass
class RankSettings(SRSettings):
    """Settings of stage two (`finetune.py`)."""

    finetune_task: str = option("Rec", "Rec or CommRank")
    data_path: str = option("./data", "prepared dataset")
    output_dir: str = option("./ckpt/finetune", "run folder; holds best/, last/ and metrics.json")
    pretrain_checkpoint: str = option(
        "none", "stage-one run folder, official adapter_model.bin (or its folder), or none"
    )
    photo_emb_file: str = option(
        "",
        "video text vectors; empty = photo_embs.npy of the checkpoint, "
        "or photo_full_embs.npy of the dataset without one",
    )
    comment_emb_file: str = option("", "comment text vectors; empty = as for videos")
    seed: int = option(2024, "seed of order, negatives and initialisation")
    per_device_train_batch_size: int = option(512, "samples a process and micro-step")
    per_device_eval_batch_size: int = option(512, "rows a process and evaluation step")
    gradient_accumulation_steps: int = option(1, "micro-steps of one optimiser step")
    dataloader_num_workers: int = option(0, "worker processes that read sample ids")
    learning_rate: float = option(1e-3, "peak learning rate")
    weight_decay: float = option(1e-5, "AdamW weight decay")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = option("constant", "after warm-up")
    warmup_ratio: float = option(0.0, "share of steps with rising learning rate")
    num_train_epochs: int = option(50, "at most this many epochs")
    patience: int = option(5, "stop after this many validations without a better metric")
    metric_for_best_model: str = option(
        "ndcg@5",
        "validation metric that picks the best epoch: recall, hr, precision, ndcg, mrr or map at any K",
    )
    val_protocol: Literal["full", "sampled"] = option(
        "full",
        "candidates of the validation: all videos (CommRank: the video's comments), or those stored with the dataset",
    )
    evaluation_strategy: Literal["epoch", "steps", "no"] = option(
        "epoch", "steps: every eval_steps epochs, as the reference counts"
    )
    eval_steps: int = option(1, "epochs between validations when evaluation_strategy is steps")
    max_candidate_num: int = option(100, "candidates of the sampled protocol")
    max_position: int = option(50, "rows of the position tables")
    max_phis_len: int = option(50, "latest videos of the video history")
    max_chis_len: int = option(50, "latest entries of the comment history")
    neg_comment_num: int = option(19, "CommRank: negatives of one positive")
    fill_up_comments: bool = option(
        True, "CommRank: where a video has too few comments, those of other videos are negatives too"
    )
    neg_video_num: int = option(0, "Rec: sampled negatives; 0 = softmax over the whole catalogue")
    negative_sampler: Literal["uniform", "log_uniform", "in_batch"] = option(
        "uniform",
        "Rec: log_uniform draws neg_video_num videos by rank of popularity; in_batch takes the targets of the "
        "process's other rows (neg_video_num stays 0); both correct the scores, softmax alone",
    )
    rec_loss: Literal["softmax", "bce", "gbce"] = option(
        "softmax",
        "Rec: softmax, or binary cross-entropy with neg_video_num uniform negatives; gbce calibrates it",
    )
    gbce_t: float = option(0.75, "gbce: calibration from 0 (bce) to 1 (as if all videos were negatives)")
    id_text_loss_weight: float = option(0.1, "weight of the id-text contrast")
    id_text_negatives: int = option(99, "sampled negatives of the id-text contrast")
    id_init_std: float = option(
        0.02, "standard deviation of fresh id embeddings; 0 starts from the text alone"
    )
    min_id_count: int = option(
        0, "videos with fewer training interactions get no id, text alone; 0 = all have one"
    )
    standardise_texts: bool = option(
        True,
        "a fresh embedding head standardises the LLM's states; False: takes them as they are, as published",
    )
    freeze: str = option(
        "",
        "parts that keep the weights they start with: text, id, encoders, separated by commas; empty = none",
    )
    disable_id: bool = option(False, "no id embeddings: text alone")
    disable_text: bool = option(False, "no text: id embeddings alone (comments get ids too)")
    disable_comments: bool = option(False, "ignore comment history and the videos' comments")
    resume: bool = option(True, "continue an interrupted run found in output_dir")
    report_to: Literal["tensorboard", "none"] = option("tensorboard", "where curves go")


@dataclass
class RecommendSettings:
    """Settings of `lsvcr recommend`."""

    bundle: str = option("", "folder that `lsvcr export` wrote")
    user: str = option("", "a user whose histories the bundle holds")
    history: str = option(
        "",
        'histories as JSON, or @FILE with it: {"video_history": [id, ...], "comment_history": [{"video": id, '
        '"comments": [id, ...]}, ...]}, oldest first',
    )
    video: str = option("", "rank the comments of this video instead of recommending videos")
    k: int = option(10, "how many")
    exclude_seen: bool = option(True, "videos that the user liked are left out")
    input: str = option("", "file with one request as JSON a line, for many at a time")
    output: str = option("", "with --input: file that receives one answer as JSON a line")
    threads: int = option(1, "processor threads")
    verify: bool = option(True, "compare the checksum of every file of the bundle first")
    json: bool = option(False, "print one JSON object instead of a table")


@dataclass
class ServeSettings:
    """Settings of `lsvcr serve`."""

    bundle: str = option("", "bundle folder, as `lsvcr export` writes it")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 = every network of the machine")
    port: int = option(8000, "port to listen on; 0 = a free one, which the first log line tells")
    state: str = option(
        "", "folder that keeps the changes of the catalogue; empty = they end with the process"
    )
    admin_token_file: str = option(
        "",
        "file with the token of the admin routes; empty = LSVCR_ADMIN_TOKEN; without either there are no such routes",
    )
    verify: bool = option(True, "compare the bundle's files with their checksums before serving")
    threads: int = option(1, "threads of one run: of the encoder and of the product with the items")
    workers: int = option(2, "runs at a time, each in a thread of its own")
    batch_size: int = option(64, "histories that one encoder run takes at most")
    batch_wait_ms: float = option(
        0.0, "how long an idle worker waits for company; 0 = requests wait only while all workers are busy"
    )
    queue: int = option(2048, "histories that may wait; beyond it 503 with Retry-After")
    request_timeout: float = option(5.0, "seconds after which a request that is not answered gets 504")
    client_timeout: float = option(10.0, "seconds a client may take to send a request, or to take an answer")
    keep_alive: float = option(75.0, "seconds an idle connection stays open")
    graceful_timeout: float = option(30.0, "seconds that requests in work have to end after SIGTERM")
    max_connections: int = option(10_000, "connections at a time; further ones get 503 at once")
    max_body_bytes: int = option(1 << 20, "bytes of a request's body")
    max_history: int = option(1000, "entries of a history, and comments in all of its visits together")
    max_k: int = option(1000, "items of one answer")
    max_batch: int = option(256, "queries of one request")
    max_candidates: int = option(10_000, "ids in candidates, in exclude, or in comments to rank")
    access_log: bool = option(True, "one line a request")
    log_format: Literal["text", "json"] = option("json", "lines on stderr")
