"""Settings of the generative recommender's commands. One field is one flag, as in `lsvcr.settings`."""

from dataclasses import dataclass
from typing import Literal

from lsvcr.settings import option


@dataclass
class RecordSettings:
    """How a history and the next title become an instruction, an input and an output."""

    data_path: str = option("./data", "prepared dataset")
    instruction: str = option(
        "Given a list of videos the user has liked before, please recommend a new video that the user likes to the "
        "user.",
        "what the LLM is asked to do; several texts with | between them: each record draws one",
    )
    history_text: str = option(
        "The user has liked the following videos before: ", "what stands before the titles"
    )
    quotes: Literal["double", "single", "none"] = option("double", "quotation marks around each title")
    max_history: int = option(10, "latest titles of the history that a record shows")
    max_train_samples: int = option(1024, "training records, drawn once; 0 = all")
    seed: int = option(2024, "seed of what is drawn, of order and of initialisation")


@dataclass
class AlpacaSettings(RecordSettings):
    """Settings of `lsvcr alpaca`."""

    out: str = option("", "JSON-lines file to write")
    split: Literal["train", "val", "test"] = option("train", "which samples; of val and test all are written")


@dataclass
class TuneSettings(RecordSettings):
    """Settings of `lsvcr tune`."""

    output_dir: str = option("./ckpt/generative", "run folder; holds best/ and last/")
    model_name_or_path: str = option("smollm2-135m", "hub id, folder, GGUF file, smollm2-135m or tiny-random")
    template: Literal["alpaca", "chat"] = option(
        "alpaca", "form of the prompt: alpaca's, or the tokenizer's own chat template"
    )
    train_on_inputs: bool = option(False, "the loss counts the prompt's tokens too, not the answer's alone")
    max_source_length: int = option(512, "tokens of a prompt; the oldest titles go first")
    max_target_length: int = option(64, "tokens of an answer, its end included")
    max_val_samples: int = option(256, "validation records whose loss chooses the best epoch; 0 = all")
    per_device_train_batch_size: int = option(8, "records read at once")
    gradient_accumulation_steps: int = option(
        4, "batches of one optimiser step; the cut changes dropout alone"
    )
    learning_rate: float = option(3e-4, "peak learning rate")
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = option("linear", "after warm-up")
    warmup_ratio: float = option(0.03, "share of steps with rising learning rate")
    weight_decay: float = option(0.0, "AdamW weight decay")
    max_grad_norm: float = option(1.0, "clip the gradient at this norm; 0 = never")
    num_train_epochs: int = option(5, "at most this many epochs; 0 = the untuned LLM")
    patience: int = option(2, "stop after this many epochs without a lower validation loss")
    lora_r: int = option(8, "LoRA rank")
    lora_alpha: int = option(16, "LoRA alpha")
    lora_dropout: float = option(0.05, "LoRA dropout")
    lora_targets: str = option(
        "", "names of the layers that get LoRA, separated by commas, such as q_proj,v_proj; empty = all"
    )
    bf16: bool | None = option(None, "compute in bfloat16; auto: where the processor has instructions for it")
    resume: bool = option(True, "continue an interrupted run found in output_dir")


@dataclass
class GenerateSettings:
    """Settings of `lsvcr generate`."""

    run: str = option("", "run folder of lsvcr tune")
    data_path: str = option("", "prepared dataset; empty = the one the run was trained on")
    decoding: Literal["free", "trie"] = option(
        "free", "any text, or titles of the catalogue alone; each has its own folder in the run"
    )
    num_beams: int = option(4, "beams of the search")
    num_return_sequences: int = option(4, "best beams that are kept, at most num_beams")
    max_new_tokens: int = option(64, "tokens of an answer, its end included")
    length_penalty: float = option(1.0, "a beam's score is its log-probability over its length to this power")
    max_rows: int = option(0, "rows of each split, drawn once; 0 = all, as other recommenders are measured")
    seed: int = option(2024, "seed of the rows that are drawn")
    per_device_eval_batch_size: int = option(16, "rows read at once")
    bf16: bool | None = option(None, "compute in bfloat16; auto: where the processor has instructions for it")
    overwrite: bool = option(False, "generate again what is there, finished or not")


@dataclass
class SpokenSettings(TuneSettings):
    """Tuning, generation and ranking in one: the row `generative` of `lsvcr compare`."""

    decoding: Literal["free", "trie"] = option("trie", "any text, or titles of the catalogue alone")
    num_beams: int = option(4, "beams of the search, all of which are kept")
    max_new_tokens: int = option(64, "tokens of an answer, its end included")
    length_penalty: float = option(1.0, "a beam's score is its log-probability over its length to this power")
    per_device_eval_batch_size: int = option(16, "rows read at once")
    max_rows: int = option(0, "rows of each split, drawn once; 0 = all")
    rows_seed: int = option(2024, "seed of the rows that are drawn")
    max_candidate_num: int = option(100, "candidates of the sampled protocol")


@dataclass
class GroundSettings:
    """Settings of `lsvcr ground`."""

    run: str = option("", "run folder of lsvcr tune, after lsvcr generate")
    data_path: str = option("", "prepared dataset; empty = the one the run was trained on")
    decoding: Literal["free", "trie"] = option("free", "which generations")
    collaborative: str = option("", "stage-two run on Rec whose scores join in; empty = none")
    rrf_k: int = option(60, "constant of reciprocal-rank fusion")
    text_token_budget: int = option(
        0, "tokens (padding included) of a batch of titles; 0 = 1024 on a CPU, 16384 on a GPU"
    )
    bf16: bool | None = option(None, "compute in bfloat16; auto: where the processor has instructions for it")
    json: bool = option(False, "print one JSON object instead of a table")
