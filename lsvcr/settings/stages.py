"""Settings of both training stages and of what lies between them."""

from dataclasses import dataclass
from typing import Literal

from lsvcr.settings.fields import option


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
    max_text_length: int = option(
        0, "tokens of one title or comment; 0 = as in stage one, else 64, with --item_prompt 256"
    )
    text_token_budget: int = option(
        0, "tokens (padding included) of a batch; 0 = 1024 on a CPU, 16384 on a GPU"
    )
    bf16: bool | None = option(None, "compute in bfloat16; auto: where the processor has instructions for it")
    item_prompt: Literal["none", "hllm"] = option(
        "none",
        "hllm: instead, write item_embs.npy, a vector a video of HLLM's prompt and its fields, for hllm_light",
    )
    pooling: Literal["auto", "mean", "last"] = option(
        "auto",
        "with --item_prompt: the mean over tokens, or the last token (auto), which has read all others",
    )
    item_fields: str = option(
        "", "with --item_prompt: columns of videos to read, such as title,category; empty = those with words"
    )
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
    adam_beta2: float = option(0.999, "AdamW: how slowly the mean of squared gradients forgets")
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
