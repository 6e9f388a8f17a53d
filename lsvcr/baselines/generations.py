"""What an LLM has said, on disk: `generations.jsonl`, one line a row of validation or test, made part by part.

{"split": "test", "row": 17, "beams": [["Heat (1995)", -0.31], ...]}: texts without their quotation marks, best first,
each with its score. A killed run goes on behind its last whole part; the file appears when it is complete.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsvcr.baselines.alpaca import QUOTES, RecordSource, quoted, unquoted
from lsvcr.baselines.alpaca_prompts import PromptWriter
from lsvcr.baselines.generative_decode import BeamSettings, beam_search
from lsvcr.baselines.generative_settings import GenerateSettings, TuneSettings
from lsvcr.baselines.generative_state import check_one_process, read_run, settings_of
from lsvcr.baselines.title_trie import TitleTrie
from lsvcr.data.draws import drawn_rows
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.llm.families import fingerprint
from lsvcr.llm.loading import load_llm
from lsvcr.llm.lora import WEIGHTS_FILE, load_adapter
from lsvcr.schema import ADAPTER_DIR, LLM_FINGERPRINT, MANIFEST_FILE, Split, Task
from lsvcr.settings.bounds import check_bounds
from lsvcr.utils.errors import UserError
from lsvcr.utils.identity import differences
from lsvcr.utils.io import atomic_file, read_json, sha256_file, write_json
from lsvcr.utils.logging import get_logger, progress
from lsvcr.utils.precision import compute_dtype

GENERATIONS_FILE = "generations.jsonl"
SPLITS = (Split.VAL, Split.TEST)
PART_ROWS = 256
"""Rows of one part: what a kill can cost."""

_PARTS = "parts"
_FREE = {"run", "data_path", "per_device_eval_batch_size", "overwrite"}
"""Settings that may change between two starts: they change no text, but for rounding."""

_log = get_logger(__name__)


@dataclass(frozen=True)
class Generated:
    """Generations of one split.

    Attributes:
        rows: (n,) int64 sample numbers, rising.
        texts: for each row its beams' texts, best first; a beam may be empty.
        scores: likewise their scores.
    """

    rows: np.ndarray
    texts: list[list[str]]
    scores: list[list[float]]


def generate(settings: GenerateSettings) -> Path:
    """Let a finished run speak for every row of validation and test, or go on where it was stopped.

    Returns:
        The folder of the generations.

    Raises:
        UserError: settings that cannot work, an unfinished run, other data, or other generations in the folder.
    """
    check_one_process("generate")
    _check(settings)
    checkpoint, manifest = read_run(settings.run)
    tuned = settings_of(manifest)
    dataset = dataset_of(settings.data_path or tuned.data_path, manifest)
    folder = Path(settings.run) / settings.decoding
    dtype = compute_dtype(settings.bf16)
    about = _about(settings, checkpoint, manifest, dtype)
    if settings.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    if _is_there(folder, about):
        _log.info("%s is complete; --overwrite makes it again", folder / GENERATIONS_FILE)
        return folder
    source = RecordSource(dataset, tuned)
    todo = [(split, part) for split in SPLITS for part in _parts(dataset, split, settings)]
    if not todo:
        raise UserError(f"{dataset.root} has no Rec samples in its val and test splits")
    names = [folder / _PARTS / f"{split.value}-{number:06d}.jsonl" for number, (split, _) in enumerate(todo)]
    speaker: Speaker | None = None
    write_json(folder / _PARTS / MANIFEST_FILE, about)
    with progress(sum(len(rows) for _, rows in todo), f"generating ({settings.decoding})") as bar:
        bar.start_at(sum(len(rows) for file, (_, rows) in zip(names, todo, strict=True) if file.is_file()))
        for file, (split, rows) in zip(names, todo, strict=True):
            if file.is_file():
                continue
            speaker = speaker or Speaker(checkpoint, tuned, settings, dataset, dtype)
            lines = []
            for line in speaker.say(source, split, rows):
                lines.append(line)
                bar.advance(1)
            with atomic_file(file) as temporary:
                temporary.write_text("".join(sorted(lines, key=_row_of)), encoding="utf-8")
    _finish(folder, names, about)
    return folder


class Speaker:
    """A tuned LLM, ready to generate.

    Args:
        checkpoint: folder of the adapter.
        tuned: settings of the run.
        settings: how to generate.
        dataset: whose titles the trie holds.
        dtype: of the computation.
    """

    def __init__(
        self,
        checkpoint: Path,
        tuned: TuneSettings,
        settings: GenerateSettings,
        dataset: Dataset,
        dtype: torch.dtype,
    ) -> None:
        manifest = read_json(checkpoint / MANIFEST_FILE)
        model, self._tokenizer = load_llm(tuned.model_name_or_path, dtype=dtype)
        if fingerprint(model) != manifest[LLM_FINGERPRINT]:
            raise UserError(
                f"{tuned.model_name_or_path} is another model than the one {checkpoint} was trained on"
            )
        self._model = load_adapter(model, checkpoint / ADAPTER_DIR)
        self._model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._writer = PromptWriter(
            self._tokenizer, tuned.template, tuned.max_source_length, max(2, settings.max_new_tokens)
        )
        self._quote = QUOTES[tuned.quotes]
        self._batch = settings.per_device_eval_batch_size
        self._search = BeamSettings(
            beams=settings.num_beams,
            returned=settings.num_return_sequences,
            max_new=settings.max_new_tokens,
            length_penalty=settings.length_penalty,
            end=self._writer.end,
            pad=int(self._tokenizer.pad_token_id),
        )
        self._titles: dict[tuple[int, ...], str] = {}
        if settings.decoding == "trie":
            self._titles = spelled_titles(self._writer, dataset, self._quote)
        self._trie = (
            TitleTrie([(*ids, self._writer.end) for ids in self._titles], self._writer.end)
            if self._titles
            else None
        )

    def _text(self, tokens: tuple[int, ...]) -> str:
        """The title that token ids spell."""
        if self._trie is not None:
            return self._titles[tokens]
        # A clean-up of blanks before full stops would change titles.
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return unquoted(str(text), self._quote)

    def say(self, source: RecordSource, split: Split, rows: np.ndarray) -> Iterator[str]:
        """Lines of `generations.jsonl` for sample numbers `rows` (n,), in any order."""
        prompts = [(record.row, self._writer.prompt(record)) for record in source.records(split, rows)]
        prompts.sort(key=lambda pair: len(pair[1]))
        for start in range(0, len(prompts), self._batch):
            batch = prompts[start : start + self._batch]
            found = beam_search(self._model, [ids for _, ids in batch], self._search, self._trie)
            for (row, _), hypotheses in zip(batch, found, strict=True):
                beams = [[self._text(h.tokens), round(h.score, 6)] for h in hypotheses]
                yield (
                    json.dumps({"split": split.value, "row": row, "beams": beams}, ensure_ascii=False) + "\n"
                )


def spelled_titles(writer: PromptWriter, dataset: Dataset, quote: str) -> dict[tuple[int, ...], str]:
    """All titles of the catalogue by their token ids (without the end), as the LLM has learned to say them.

    A title too long for an answer has no place; of titles with the same ids (a tokenizer may not tell them apart)
    the first in the alphabet has.

    Raises:
        UserError: no title fits.
    """
    found: dict[tuple[int, ...], str] = {}
    titles = sorted({" ".join(title.split()) for title in dataset.titles()} - {""})
    long = 0
    for title in titles:
        ids = writer.whole_answer(quoted(title, quote))
        if ids is None:
            long += 1
        else:
            found.setdefault(tuple(ids[:-1]), title)
    if not found:
        raise UserError("--max_new_tokens: no title of the catalogue is that short")
    if long:
        _log.warning("%d of %d titles are longer than --max_new_tokens and cannot be said", long, len(titles))
    return found


def dataset_of(path: str, manifest: Mapping[str, Any]) -> Dataset:
    """The dataset of a run.

    Raises:
        UserError: another one.
    """
    dataset = open_dataset(path)
    if dataset.data_hash != manifest["data_hash"]:
        raise UserError(
            f"the run was trained on another dataset than {path} (their hashes differ); give it with --data_path"
        )
    return dataset


def read_generations(folder: str | Path) -> tuple[dict[Split, Generated], dict[str, Any]]:
    """What `generate` wrote, by split, and its manifest.

    Raises:
        UserError: nothing complete is there, or a line is broken.
    """
    file = Path(folder) / GENERATIONS_FILE
    if not file.is_file():
        raise UserError(f"{file} does not exist: run `lsvcr generate {file.parent.parent}` first")
    found: dict[Split, list[tuple[int, list[str], list[float]]]] = {split: [] for split in SPLITS}
    for number, line in enumerate(file.read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
        try:
            entry = json.loads(line)
            texts, scores = [str(text) for text, _ in entry["beams"]], [float(s) for _, s in entry["beams"]]
            if not all(map(math.isfinite, scores)):
                raise ValueError("a score is not finite")
            found[Split(entry["split"])].append((int(entry["row"]), texts, scores))
        except (ValueError, KeyError, TypeError) as broken:
            raise UserError(
                f"{file}, line {number}: no generation ({broken!r}); generate again with --overwrite"
            ) from None
    return {split: _sorted(split, entries, file) for split, entries in found.items()}, read_json(
        file.parent / MANIFEST_FILE
    )


def _sorted(split: Split, entries: list[tuple[int, list[str], list[float]]], file: Path) -> Generated:
    entries.sort(key=lambda entry: entry[0])
    rows = np.array([row for row, _, _ in entries], dtype=np.int64)
    if len(np.unique(rows)) < len(rows):
        raise UserError(f"{file}: a row of {split.value} comes twice; generate again with --overwrite")
    return Generated(rows, [texts for _, texts, _ in entries], [scores for _, _, scores in entries])


def _check(settings: GenerateSettings) -> None:
    check_bounds(settings)
    for flag in ("num_beams", "num_return_sequences"):
        if getattr(settings, flag) < 1:
            raise UserError(f"--{flag} {getattr(settings, flag)} must be at least 1")
    if settings.max_new_tokens < 2:
        raise UserError(f"--max_new_tokens {settings.max_new_tokens}: an answer needs a token and its end")
    if settings.num_return_sequences > settings.num_beams:
        raise UserError(
            f"--num_return_sequences {settings.num_return_sequences} is more than --num_beams {settings.num_beams}"
        )


def _about(
    settings: GenerateSettings, checkpoint: Path, manifest: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, Any]:
    """What two starts must share, and what the finished folder says of itself."""
    chosen = {name: value for name, value in asdict(settings).items() if name not in (*_FREE, "bf16")}
    return {
        "kind": "generations",
        "settings": chosen,
        "data_hash": manifest["data_hash"],
        LLM_FINGERPRINT: manifest[LLM_FINGERPRINT],
        "adapter": sha256_file(checkpoint / ADAPTER_DIR / WEIGHTS_FILE),
        "precision": str(dtype).removeprefix("torch."),
    }


def _is_there(folder: Path, about: Mapping[str, Any]) -> bool:
    """Is the work done? What was begun or finished there must be the same work."""
    for manifest in (folder / MANIFEST_FILE, folder / _PARTS / MANIFEST_FILE):
        if not manifest.is_file():
            continue
        there = read_json(manifest)
        wanted, known = ({**m.pop("settings"), **m} for m in (dict(about), dict(there)))
        told = differences(wanted, known)
        if told:
            raise UserError(f"{folder} holds other generations: {told}. Make them again with --overwrite")
        return manifest.parent == folder
    return False


def _parts(dataset: Dataset, split: Split, settings: GenerateSettings) -> list[np.ndarray]:
    """Sample numbers of a split, a part at a time."""
    every = np.arange(len(dataset.samples(Task.REC, split)), dtype=np.int64)
    rows = drawn_rows(every, settings.max_rows, settings.seed, split)
    return [rows[start : start + PART_ROWS] for start in range(0, len(rows), PART_ROWS)]


def _finish(folder: Path, parts: Sequence[Path], about: Mapping[str, Any]) -> None:
    with (
        atomic_file(folder / GENERATIONS_FILE) as temporary,
        temporary.open("w", encoding="utf-8") as stream,
    ):
        for part in parts:
            stream.write(part.read_text(encoding="utf-8"))
    write_json(folder / MANIFEST_FILE, dict(about))
    shutil.rmtree(folder / _PARTS)


def _row_of(line: str) -> int:
    return int(json.loads(line)["row"])
