"""The prompts of stage one, built from token ids (LSVCR paper, section on personalised preference alignment).

A prompt tells both histories as text, oldest entry first, and asks for the next video's title (Rec) or for the
comment the person will like (CommRank). Every title and comment is tokenised once, by the caller, and spliced
between the fixed phrases, so that a text has the same ids in the prompt and in the text branch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lsvcr.utils.errors import UserError

SHOWN_COMMENTS = 3
"""A prompt shows at most this many comments of one history entry (published)."""


@dataclass(frozen=True)
class Wording:
    """The fixed phrases of one language; titles and comments stand between them."""

    intro: str
    videos: str
    comments: str
    nothing: str
    video: tuple[str, str, str, str]
    """Before the title; after it when no comment follows; between title and comment; after the comment."""
    comment: tuple[str, str, str, str]
    """Before the title; between title and first comment; between comments; after the last."""
    ask_title: str
    ask_comment: tuple[str, str]
    """Before and after the title of the video being watched."""


WORDINGS = {
    "en": Wording(
        intro="These are the recent actions of one person in a short video app.\n",
        videos="Videos this person liked, the latest last, each with a comment other viewers liked:\n",
        comments="Comments this person reacted to, the latest last, below the title of their video:\n",
        nothing="(none so far)\n",
        video=('- "', '"\n', '", with the comment "', '"\n'),
        comment=('- below "', '": "', '", "', '"\n'),
        ask_title="Give the title of the next video this person will like:\n",
        ask_comment=(
            'This person is now watching "',
            '". Give a comment below it that this person will like:\n',
        ),
    ),
    "zh": Wording(
        intro="以下是一位短视频用户最近的行为记录。\n",
        videos="该用户点赞过的视频（最近的在最后），附一条其他观众喜欢的评论：\n",
        comments="该用户互动过的评论（最近的在最后），附所在视频的标题：\n",
        nothing="（暂无）\n",
        video=("- 《", "》\n", "》，评论：“", "”\n"),
        comment=("- 《", "》下的评论：“", "”、“", "”\n"),
        ask_title="请写出该用户接下来会点赞的视频的标题：\n",
        ask_comment=("该用户正在观看《", "》。请写出其中该用户会喜欢的一条评论：\n"),
    ),
}


@dataclass(frozen=True)
class Entry:
    """One entry of a history as token ids: the video's title and the comments to show (may be none)."""

    title: Sequence[int]
    comments: Sequence[Sequence[int]]


class PromptBuilder:
    """Builds prompts and responses as lists of token ids.

    Args:
        tokenizer: a transformers tokenizer; what it puts around a text by itself (a start token, say) opens
            every prompt once. No chat template is used, so base models serve too.
        language: key of `WORDINGS`.
        max_source: most tokens of a prompt.
        max_target: most tokens of a response, its end token included.
        max_text: most tokens of one title or comment inside a prompt.

    Raises:
        UserError: `max_source` cannot hold even a prompt without history, or `max_target` no token.
    """

    def __init__(
        self, tokenizer: Any, *, language: str, max_source: int, max_target: int, max_text: int
    ) -> None:
        self._tokenizer = tokenizer
        self._max_source, self._max_target, self._max_text = max_source, max_target, max_text
        words = WORDINGS[language]
        self.opening, self._closing = special_tokens(tokenizer)
        self._intro = self.opening + self.plain(words.intro)
        self._headings = (self.plain(words.videos), self.plain(words.comments))
        self._nothing = self.plain(words.nothing)
        self._video = tuple(self.plain(phrase) for phrase in words.video)
        self._comment = tuple(self.plain(phrase) for phrase in words.comment)
        self._ask_title = self.plain(words.ask_title)
        self._ask_comment = tuple(self.plain(phrase) for phrase in words.ask_comment)
        fixed = [self._intro, *self._headings, self._nothing, self._nothing]
        longest_request = max(len(self._ask_title), sum(map(len, self._ask_comment)) + max_text)
        needed = sum(map(len, fixed)) + longest_request
        if max_source < needed:
            raise UserError(
                f"--max_source_length {max_source} cannot hold even a prompt without history: "
                f"give at least {needed}, or lower --max_text_length {max_text}"
            )
        if max_target < 2:
            raise UserError(
                f"--max_target_length {max_target}: a response needs at least a token and its end, give 2 or more"
            )

    def plain(self, text: str) -> list[int]:
        """Token ids of `text` without the tokens a tokenizer adds; a special token typed in it is plain text."""
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def inner(self, ids: Sequence[int]) -> Sequence[int]:
        """A text tokenised with the tokenizer's own special tokens, cut to `max_text` and freed of them."""
        start = len(self.opening) if list(ids[: len(self.opening)]) == self.opening else 0
        end = len(ids)
        if self._closing and list(ids[end - len(self._closing) :]) == self._closing:
            end -= len(self._closing)
        return ids[start : min(end, start + self._max_text)]

    def prompt(
        self,
        videos: Sequence[Entry],
        comments: Sequence[Entry],
        watched: Sequence[int] | None,
        comments_first: bool,
    ) -> list[int]:
        """Token ids of one prompt.

        Args:
            videos: video history, oldest first; the first comment of an entry is shown.
            comments: comment history, oldest first; at most `SHOWN_COMMENTS` of an entry are shown.
            watched: title of the video being watched (CommRank), or None (Rec).
            comments_first: tell the comment history before the video history.

        Returns:
            At most `max_source` ids, ending with the request. What is too long loses its oldest entries, always
            from the history that has more of them left; never a part of the request.
        """
        request = (
            self._ask_title if watched is None else [*self._ask_comment[0], *watched, *self._ask_comment[1]]
        )
        told = (
            [self._video_ids(entry) for entry in videos],
            [self._comment_ids(entry) for entry in comments],
        )
        room = self._max_source - len(self._intro) - len(request)
        # A history that loses every entry says so, in `nothing`; its room is kept free.
        room -= sum(len(heading) + len(self._nothing) for heading in self._headings)
        kept = keep_latest(([len(ids) for ids in told[0]], [len(ids) for ids in told[1]]), room)
        sections = []
        for heading, entries, first in zip(self._headings, told, kept, strict=True):
            listed = [token for ids in entries[first:] for token in ids]
            sections.append([*heading, *(listed or self._nothing)])
        if comments_first:
            sections.reverse()
        return [*self._intro, *sections[0], *sections[1], *request]

    def response(self, text: str) -> list[int]:
        """Token ids of what the LLM should say, cut on the right to leave room for the end token."""
        return [*self.plain(text)[: self._max_target - 1], int(self._tokenizer.eos_token_id)]

    def _video_ids(self, entry: Entry) -> list[int]:
        before, alone, between, after = self._video
        if not entry.comments or not entry.comments[0]:
            return [*before, *entry.title, *alone]
        return [*before, *entry.title, *between, *entry.comments[0], *after]

    def _comment_ids(self, entry: Entry) -> list[int]:
        before, between, again, after = self._comment
        ids = [*before, *entry.title, *between]
        for number, comment in enumerate(entry.comments[:SHOWN_COMMENTS]):
            ids += [*(again if number else ()), *comment]
        return [*ids, *after]


def keep_latest(lengths: tuple[Sequence[int], Sequence[int]], room: int) -> tuple[int, int]:
    """Which entries of two histories fit: the index of the first kept entry of each.

    The oldest entry of the history with more entries left goes first; at a tie the first history's.

    Args:
        lengths: tokens of every entry, oldest first, of both histories.
        room: tokens there are for all entries together.
    """
    first = [0, 0]
    total = sum(lengths[0]) + sum(lengths[1])
    while total > room:
        left = [len(lengths[side]) - first[side] for side in (0, 1)]
        if left == [0, 0]:
            break
        side = 0 if left[0] >= left[1] else 1
        total -= lengths[side][first[side]]
        first[side] += 1
    return first[0], first[1]


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids a tokenizer puts before and after every text by itself (often none)."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []
