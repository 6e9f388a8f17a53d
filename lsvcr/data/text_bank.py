"""Titles and comments as token ids, each tokenised once, and keys that tell equal texts apart from others."""

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

Tokenize = Callable[[list[str]], list[list[int]]]
"""Texts to token ids, one list a text; an empty text has none."""

CACHED_TEXTS = 200_000
"""Texts kept before the cache starts anew: about 100 MB of ids."""


def video_code(video: int) -> int:
    """One number space for both kinds of text: titles are even, 0 is no text."""
    return 2 * video


def comment_code(comment: int) -> int:
    """One number space for both kinds of text: comments are odd; comment 0 is no text."""
    return 2 * comment + 1 if comment else 0


def text_key(text: str) -> int:
    """A number in [0, 2^63) that equal texts share, whatever their case, width and spacing."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "little") >> 1


class TextBank:
    """The texts of a dataset by code, see `video_code` and `comment_code`.

    Args:
        titles, contents: text tables of a dataset, index 0 empty, with `take(ids) -> list[str]`.
        tokenize: the text branch's tokenisation.
    """

    def __init__(self, titles: Any, contents: Any, tokenize: Tokenize) -> None:
        self._titles, self._contents, self._tokenize = titles, contents, tokenize
        self._ids: dict[int, list[int]] = {0: []}
        self._keys: dict[int, int] = {}

    def ids(self, codes: Sequence[int]) -> dict[int, list[int]]:
        """Token ids of every code; what is not cached is read and tokenised in one call."""
        wanted = dict.fromkeys(codes)
        if len(self._ids) > CACHED_TEXTS:
            self._ids = {0: []}
        missing = [code for code in wanted if code not in self._ids]
        if missing:
            self._ids.update(zip(missing, self._tokenize(self.texts(missing)), strict=True))
        return {code: self._ids[code] for code in wanted}

    def texts(self, codes: Sequence[int]) -> list[str]:
        """The texts themselves, in the order of `codes`."""
        found: dict[int, str] = {0: ""}
        for table, parity in ((self._titles, 0), (self._contents, 1)):
            mine = [code for code in dict.fromkeys(codes) if code and code % 2 == parity]
            found.update(zip(mine, table.take([code // 2 for code in mine]) if mine else [], strict=True))
        return [found[code] for code in codes]

    def keys(self, codes: Sequence[int]) -> dict[int, int]:
        """`text_key` of every code: what false negatives are told by."""
        if len(self._keys) > CACHED_TEXTS:
            self._keys = {}
        missing = [code for code in dict.fromkeys(codes) if code not in self._keys]
        self._keys.update(zip(missing, map(text_key, self.texts(missing)), strict=True))
        return {code: self._keys[code] for code in codes}
