"""A tuned tiny LLM and its generations on the tiny world, made once for all tests that read them."""

from pathlib import Path

from lsvcr.baselines.generations import generate
from lsvcr.baselines.generative import tune
from lsvcr.baselines.generative_settings import GenerateSettings, TuneSettings
from lsvcr.training.schedule import learning_rate_factor


def tune_settings(data: Path, folder: Path, **changed: object) -> TuneSettings:
    """Settings under which tuning takes seconds: short prompts, few records, two epochs."""
    known = {
        "data_path": str(data),
        "output_dir": str(folder),
        "model_name_or_path": "tiny-random",
        "instruction": "Next?",
        "history_text": "Liked: ",
        "max_history": 3,
        "max_train_samples": 20,
        "max_val_samples": 6,
        "max_source_length": 400,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "num_train_epochs": 2,
        "bf16": False,
    }
    return TuneSettings(**{**known, **changed})


def generate_settings(run: Path, **changed: object) -> GenerateSettings:
    """Settings under which generating takes seconds."""
    known = {"run": str(run), "max_new_tokens": 16, "num_beams": 3, "num_return_sequences": 3, "bf16": False}
    return GenerateSettings(**{**known, **changed})


def make_run(data: Path, folder: Path) -> Path:
    """A tuned run with generations of both decodings."""
    tune(tune_settings(data, folder), learning_rate_factor)
    for decoding in ("free", "trie"):
        generate(generate_settings(folder, decoding=decoding))
    return folder
