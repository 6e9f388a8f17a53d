"""Settings of HLLM with both LLMs in training."""

from dataclasses import dataclass
from typing import Literal

from lsvcr.settings.fields import option
from lsvcr.settings.others import BaselineSettings


@dataclass
class HllmSettings(BaselineSettings):
    """Settings of `lsvcr hllm`."""

    model_name_or_path: str = option(
        "smollm2-135m", "item LLM: hub id, folder, GGUF file, smollm2-135m or tiny-random"
    )
    user_model_name_or_path: str = option(
        "", "LLM whose blocks read the videos of a history; empty = the item LLM's, with weights of its own"
    )
    llm_layers: int = option(0, "use the first N layers of the item LLM; 0 = all")
    user_layers: int = option(0, "use the first N layers of the user LLM; 0 = all")
    item_fields: str = option(
        "", "columns of videos that the item LLM reads, such as title,category; empty = those with words"
    )
    item_emb_token_n: int = option(
        0, "learned tokens behind a text whose mean state is its embedding; 0 = the state of its last token"
    )
    max_text_length: int = option(128, "tokens of one text, the prompt among them")
    text_token_budget: int = option(
        0, "tokens (padding included) of one text batch; 0 = 512 on a CPU, 16384 on a GPU"
    )
    freeze_item_llm: bool = option(
        False, "train the user LLM alone; without learned tokens every text is then read once in all"
    )
    lora_r: int = option(8, "LoRA rank in both LLMs; 0 = all their weights train")
    lora_alpha: int = option(32, "LoRA alpha")
    lora_dropout: float = option(0.1, "LoRA dropout")
    gradient_checkpointing: bool = option(True, "recompute activations: less memory, more time")
    recompute: Literal["selective", "full"] = option(
        "selective",
        "what gradient_checkpointing computes anew: full = whole layers (least memory); "
        "selective = norms, activations, gates and dropout (faster)",
    )
    bf16: bool | None = option(None, "compute in bfloat16; auto: where the processor has instructions for it")
    deepspeed: str = option("config/ds_z2_bf16.json", "DeepSpeed configuration")
    ddp_timeout: int = option(1800, "seconds a process waits for the others before the run is given up")
    output_dir: str = option("./ckpt/hllm", "run folder; holds best/, last/ and metrics.json")
    per_device_train_batch_size: int = option(
        8, "users a process and micro-step, whose targets are one another's negatives"
    )
    max_his: int = option(50, "latest videos of a history that the user LLM reads")
    neg_video_num: int = option(
        0, "sampled negatives of a micro-step; 0 = the targets of all processes' users are one another's"
    )
    learning_rate: float = option(1e-4, "peak learning rate of the LLMs")
    head_learning_rate: float = option(
        1e-3, "peak learning rate of projection, temperature and learned tokens; 0 = learning_rate"
    )
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = option("cosine", "after warm-up")
    warmup_ratio: float = option(0.03, "share of steps with rising learning rate")
    max_grad_norm: float = option(1.0, "clip the gradient at this norm; 0 = never")
    num_train_epochs: int = option(5, "at most this many passes over the users")
    max_steps: int = option(-1, "stop after this many optimiser steps; -1 = by epochs")
    patience: int = option(3, "stop after this many validations without a better metric")
    evaluation_strategy: Literal["epoch", "steps", "no"] = option(
        "epoch", "when to validate; steps: every eval_steps optimiser steps"
    )
    eval_steps: int = option(200, "optimiser steps between validations when evaluation_strategy is steps")
    save_strategy: Literal["steps", "epoch", "no"] = option("epoch", "when last/ is written")
    save_steps: int = option(200, "optimiser steps between checkpoints when save_strategy is steps")
    save_total_limit: int = option(
        0, "newest checkpoints that are kept (step-NNNNNN/ beside last/); 0 or 1 = last/ and best/ alone"
    )
    load_best_model_at_end: bool = option(
        True, "finish with the best checkpoint in best/; False: the last one"
    )
    logging_steps: int = option(10, "optimiser steps between log lines")
