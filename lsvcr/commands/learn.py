"""What is learned besides the two stages, and what stands between them."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lsvcr.baselines.generative_settings import AlpacaSettings, GenerateSettings, TuneSettings
from lsvcr.baselines.gpsd_settings import ClickSettings
from lsvcr.commands.command import Command
from lsvcr.settings import ConvertSettings, EmbedSettings, HllmSettings
from lsvcr.utils.arguments import parse_settings
from lsvcr.utils.errors import UserError

if TYPE_CHECKING:
    from lsvcr.baselines.registry import Entry

_TRAIN_SUMMARY = "Train or fit another recommender, for comparison; without a name it lists them."
_TRAIN = "lsvcr train sasrec --data_path demo/data --output_dir demo/sasrec"


def _embed(settings: EmbedSettings) -> None:
    from lsvcr.training.embed import embed

    embed(settings)


def _convert(settings: ConvertSettings) -> None:
    from lsvcr.training.convert import convert

    convert(settings)


def _train(words: Sequence[str]) -> None:
    from lsvcr.baselines.registry import entries, find

    if not words or words[0] in ("--help", "-h"):
        sys.stdout.write(_recommenders(entries()))
        raise SystemExit(0)
    name = words[0]
    if name.startswith("-"):
        raise UserError(f"lsvcr train needs the name of a recommender first, as in: {_TRAIN}")
    entry = find(name)
    settings = parse_settings(
        entry.settings, words[1:], f"lsvcr train {name}", entry.summary, _TRAIN.replace("sasrec", name)
    )
    from lsvcr.training.baseline import run

    run(name, settings)


def _hllm(settings: HllmSettings) -> None:
    from lsvcr.training.hllm import hllm

    hllm(settings)


def _recommenders(known: "Mapping[str, Entry]") -> str:
    lines = [
        "usage: lsvcr train NAME [--flag value ...]   (lsvcr train NAME --help tells the flags)",
        "",
        _TRAIN_SUMMARY,
        "",
        "example:",
        f"  {_TRAIN}",
        "",
        "recommenders:",
    ]
    lines += [f"  {name:<20} {entry.summary}" for name, entry in known.items()]
    return "\n".join(lines) + "\n"


def _clicks(settings: ClickSettings) -> None:
    from lsvcr.training.clicks import run

    run(settings)


def _alpaca(settings: AlpacaSettings) -> None:
    from lsvcr.baselines.alpaca import write_alpaca
    from lsvcr.data.store import open_dataset

    write_alpaca(open_dataset(settings.data_path), settings)


def _tune(settings: TuneSettings) -> None:
    from lsvcr.baselines.generative import tune
    from lsvcr.training.schedule import learning_rate_factor

    tune(settings, learning_rate_factor)


def _generate(settings: GenerateSettings) -> None:
    from lsvcr.baselines.generations import generate

    generate(settings)


COMMANDS = {
    "embed": Command(
        "Turn all titles and comments of a dataset into text vectors.",
        "lsvcr embed --checkpoint ckpt/LSVCR --data_path demo/data",
        _embed,
        EmbedSettings,
    ),
    "convert": Command(
        "Turn an official checkpoint, or a legacy ChatGLM's adapter, into ours.",
        "lsvcr convert official/adapter_model.bin --model_name_or_path models/chatglm3-6b --out ckpt/official",
        _convert,
        ConvertSettings,
        places=("checkpoint",),
        needs=("checkpoint", "model_name_or_path", "out"),
    ),
    "train": Command(_TRAIN_SUMMARY, _TRAIN, _train),
    "hllm": Command(
        "Train HLLM, an LLM that reads videos' texts and one that reads histories, end to end (several processes: "
        "scripts/run_hllm.sh).",
        "lsvcr hllm --data_path demo/data --output_dir ckpt/hllm",
        _hllm,
        HllmSettings,
    ),
    "clicks": Command(
        "Train a model of clicks on GPSD's pretraining, or without it, and measure AUC epoch by epoch.",
        "lsvcr clicks --data_path demo/data --pretrained demo/gpsd --transfer ft-sf --output_dir demo/clicks",
        _clicks,
        ClickSettings,
    ),
    "alpaca": Command(
        "Write {instruction, input, output} records of a dataset as JSON lines.",
        "lsvcr alpaca --data_path demo/data --out ckpt/alpaca.jsonl",
        _alpaca,
        AlpacaSettings,
        needs=("out",),
    ),
    "tune": Command(
        "Fine-tune an LLM with LoRA to say the next title.",
        "lsvcr tune --data_path demo/data --output_dir ckpt/generative",
        _tune,
        TuneSettings,
    ),
    "generate": Command(
        "Let a fine-tuned LLM say titles for validation and test, by beam search.",
        "lsvcr generate ckpt/generative --decoding trie",
        _generate,
        GenerateSettings,
        places=("run",),
        needs=("run",),
    ),
}
