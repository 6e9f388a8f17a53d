"""The tokenizer of ChatGLM2 and ChatGLM3: a sentencepiece model and nine special tokens behind it.

Sentencepiece itself cuts the texts, so whatever normaliser, ties and byte pieces a model has, its ids are right.
A translation into `tokenizers` merges is not: sentencepiece takes the leftmost of two pieces with equal scores,
and merges have one fixed order.
"""

import json
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers import AddedToken, PreTrainedTokenizer

from lsvcr.llm.chatglm import MODEL_TYPE
from lsvcr.llm.quiet import quiet
from lsvcr.utils.errors import UserError

VOCABULARY = "tokenizer.model"

_ROLES = ("system", "user", "assistant", "observation")
"""Who speaks in a chat; each has the special token `<|role|>` (ChatGLM3)."""

_SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", *(f"<|{role}|>" for role in _ROLES))


class ChatGLMTokenizer(PreTrainedTokenizer):
    """Texts to ids as ChatGLM's own tokenizer makes them.

    `[gMASK] sop` opens every text, a pair of texts ends with the end token, a single one does not. Padding is on
    the left with id 0. A text is not searched for special tokens: "philosophy" would hold one. (A vocabulary in
    which `sop` is also a piece gives that piece the special token's id; so does the original.)

    Transformers' `AutoTokenizer` makes another tokenizer of the same files, without the opening and with other
    cuts: open a saved copy with `lsvcr.llm.loading.load_tokenizer`, or with this class.

    Args:
        vocab_file: the sentencepiece model.
        options: of `PreTrainedTokenizer`; what a ChatGLM tokenizer is made of cannot be changed.

    Raises:
        UserError: there is no such file, or it is no sentencepiece model.
    """

    vocab_files_names = {"vocab_file": VOCABULARY}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file: str | Path, **options: Any) -> None:
        self.vocab_file = str(vocab_file)
        self._pieces = _read(Path(vocab_file))
        self._vocab_size = self._pieces.get_piece_size()
        names = [self._pieces.id_to_piece(index) for index in range(self._vocab_size)]
        self._ids = {name: index for index, name in enumerate([*names, *_SPECIAL])}
        unknown = names[self._pieces.unk_id()]
        fixed = {
            "unk_token": unknown,
            "pad_token": unknown,
            "eos_token": names[self._pieces.eos_id()],
            "bos_token": None,
            "extra_special_tokens": [AddedToken(name, normalized=False, special=True) for name in _SPECIAL],
            "padding_side": "left",
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
        }
        super().__init__(**{**options, **fixed})

    @property
    def vocab_size(self) -> int:
        """Number of sentencepiece pieces; the special tokens have the ids behind them."""
        return self._vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Every piece and special token with its id."""
        return dict(self._ids)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`[gMASK] sop A`, or `[gMASK] sop A B </s>` for a pair."""
        ids = [self._ids["[gMASK]"], self._ids["sop"], *token_ids_0]
        return ids if token_ids_1 is None else [*ids, *token_ids_1, self.eos_token_id]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 where `build_inputs_with_special_tokens` adds an id, 0 at the texts' own."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        mask = [1, 1, *[0] * len(token_ids_0)]
        return mask if token_ids_1 is None else [*mask, *[0] * len(token_ids_1), 1]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of pieces; special tokens stand in it by their names."""
        runs = groupby(tokens, key=lambda token: token in _SPECIAL)
        return "".join("".join(run) if special else self._pieces.decode(list(run)) for special, run in runs)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy the sentencepiece model into a folder."""
        target = Path(save_directory) / f"{f'{filename_prefix}-' if filename_prefix else ''}{VOCABULARY}"
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        pieces: list[str] = self._pieces.encode(text, out_type=str)
        return pieces

    def _convert_token_to_id(self, token: str) -> int:
        # A character without piece comes as itself.
        return self._ids.get(token, self._pieces.unk_id())

    def _convert_id_to_token(self, index: int) -> str:
        name: str = self._pieces.id_to_piece(index)
        return name


def is_chatglm_folder(folder: Path) -> bool:
    """The folder's tokenizer is ChatGLM's: it is a published model, or holds a saved `ChatGLMTokenizer`."""
    return (
        _entry(folder / "config.json", "model_type") == MODEL_TYPE
        or _entry(folder / "tokenizer_config.json", "tokenizer_class") == ChatGLMTokenizer.__name__
    )


def open_tokenizer(folder: Path) -> ChatGLMTokenizer:
    """The tokenizer of a ChatGLM folder.

    Only the sentencepiece model is read: the settings beside it name code that is not run, and say nothing new.

    Raises:
        UserError: the folder has no sentencepiece model.
    """
    with quiet():
        return ChatGLMTokenizer(folder / VOCABULARY)


def _entry(path: Path, key: str) -> Any:
    """A value of a JSON file; None if file or key is not there."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): download the model again") from None
    return content.get(key) if isinstance(content, dict) else None


def _read(path: Path) -> SentencePieceProcessor:
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: copy ChatGLM's {VOCABULARY} there, no other file replaces it"
        )
    try:
        return SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path} is no sentencepiece model ({str(error).strip() or 'damaged'}): download it again; of GLM-4, "
            "whose tokenizer is of another kind, take a version in transformers' own format"
        ) from None
