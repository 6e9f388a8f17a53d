"""Prompts by token: both orders, both languages, and what gives way when there is no room."""

import numpy as np
import pytest

from lsvcr.data.prompts import WORDINGS, Entry, PromptBuilder, keep_latest, special_tokens
from lsvcr.llm.tiny import tiny_tokenizer
from lsvcr.utils.errors import UserError

TOKENIZER = tiny_tokenizer()


def builder(
    language: str = "en", max_source: int = 2000, max_target: int = 64, max_text: int = 40
) -> PromptBuilder:
    return PromptBuilder(
        TOKENIZER, language=language, max_source=max_source, max_target=max_target, max_text=max_text
    )


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def videos(count: int) -> list[Entry]:
    return [Entry(ids(f"video {n:02}"), [ids(f"wow {n:02}")]) for n in range(count)]


def comments(count: int) -> list[Entry]:
    return [Entry(ids(f"clip {n:02}"), [ids(f"ha {n:02}"), ids(f"oh {n:02}")]) for n in range(count)]


def test_rec_prompt_word_for_word() -> None:
    prompt = builder().prompt([*videos(1), Entry(ids("mute"), [[]])], comments(1), None, comments_first=False)
    assert TOKENIZER.decode(prompt) == (
        "These are the recent actions of one person in a short video app.\n"
        "Videos this person liked, the latest last, each with a comment other viewers liked:\n"
        '- "video 00", with the comment "wow 00"\n'
        '- "mute"\n'
        "Comments this person reacted to, the latest last, below the title of their video:\n"
        '- below "clip 00": "ha 00", "oh 00"\n'
        "Give the title of the next video this person will like:\n"
    )


def test_comm_rank_prompt_tells_the_watched_title_and_may_begin_with_comments() -> None:
    prompt = TOKENIZER.decode(builder().prompt(videos(1), [], ids("tea at dawn"), comments_first=True))
    assert prompt.index("Comments this person") < prompt.index("Videos this person")
    assert "(none so far)\n" in prompt
    assert prompt.endswith(
        'This person is now watching "tea at dawn". Give a comment below it that this person will like:\n'
    )


def test_chinese_prompt() -> None:
    entry = Entry(ids("炒饭"), [ids("好香")])
    prompt = TOKENIZER.decode(builder("zh").prompt([entry], [entry], ids("煮面"), comments_first=False))
    assert "- 《炒饭》，评论：“好香”\n" in prompt
    assert "- 《炒饭》下的评论：“好香”\n" in prompt
    assert prompt.endswith("该用户正在观看《煮面》。请写出其中该用户会喜欢的一条评论：\n")


def test_at_most_three_comments_of_an_entry_are_shown() -> None:
    entry = Entry(ids("t"), [ids(c) for c in "abcde"])
    text = TOKENIZER.decode(builder().prompt([], [entry], None, comments_first=False))
    assert '- below "t": "a", "b", "c"\n' in text


@pytest.mark.parametrize("language", sorted(WORDINGS))
@pytest.mark.parametrize("comments_first", [False, True])
def test_too_long_a_prompt_loses_its_oldest_entries_never_its_request(
    language: str, comments_first: bool
) -> None:
    watched = ids("the watched one")
    whole = builder(language, 100_000).prompt(videos(12), comments(12), watched, comments_first)
    request = whole[-(len(watched) + len(ids("".join(WORDINGS[language].ask_comment)))) :]
    lengths = []
    for limit in [*range(640, len(whole), 97), len(whole) + 100]:
        prompt = builder(language, limit).prompt(videos(12), comments(12), watched, comments_first)
        assert len(prompt) <= limit
        assert prompt[-len(request) :] == request
        text = TOKENIZER.decode(prompt)
        kept_videos = [n for n in range(12) if f"video {n:02}" in text and f"wow {n:02}" in text]
        kept_comments = [n for n in range(12) if f"clip {n:02}" in text]
        for kept in (kept_videos, kept_comments):  # the latest ones, without a hole
            assert kept == list(range(12 - len(kept), 12))
        assert abs(len(kept_videos) - len(kept_comments)) <= 1
        lengths.append(len(kept_videos) + len(kept_comments))
    assert lengths == sorted(lengths)
    assert lengths[0] < 24
    assert lengths[-1] == 24


def test_keep_latest_takes_from_the_history_with_more_left() -> None:
    assert keep_latest(([5, 5, 5], [5]), 100) == (0, 0)
    assert keep_latest(([5, 5, 5], [5]), 15) == (1, 0)
    assert keep_latest(([5, 5, 5], [5]), 10) == (2, 0)
    assert keep_latest(([5, 5, 5], [5]), 5) == (3, 0)  # at a tie the first history gives
    assert keep_latest(([5, 5, 5], [5]), 0) == (3, 1)
    assert keep_latest(([], []), -3) == (0, 0)


def test_response_ends_with_the_end_token_however_long_the_text() -> None:
    end = TOKENIZER.eos_token_id
    assert builder().response("ab") == [*ids("ab"), end]
    assert builder(max_target=4).response("abcdefgh") == [*ids("abc"), end]
    assert builder().response("") == [end]


def test_an_end_token_typed_in_a_text_is_plain_text() -> None:
    assert TOKENIZER.eos_token_id not in builder().response("ab</s>cd")[:-1]


def test_too_small_a_window_names_what_is_needed() -> None:
    with pytest.raises(UserError, match=r"max_source_length 50 .* give at least \d+"):
        builder(max_source=50)
    with pytest.raises(UserError, match="max_target_length 1"):
        builder(max_target=1)


def test_the_smallest_window_that_is_allowed_holds_a_prompt() -> None:
    with pytest.raises(UserError) as refused:
        builder(max_source=50)
    needed = int(str(refused.value).split("at least ")[1].split(",")[0])
    prompt = builder(max_source=needed).prompt(videos(9), comments(9), ids("w" * 40), comments_first=False)
    assert len(prompt) <= needed


class _WithStart:
    """A tokenizer that opens and closes every text with tokens of its own."""

    eos_token_id = 2

    def __call__(self, text: str, add_special_tokens: bool = True, **_: object) -> dict:
        bare = [10 + byte for byte in text.encode()]
        return {"input_ids": [1, *bare, 9] if add_special_tokens else bare}


def test_tokens_that_a_tokenizer_adds_open_a_prompt_once() -> None:
    tokenizer = _WithStart()
    assert special_tokens(tokenizer) == ([1], [9])
    made = PromptBuilder(tokenizer, language="en", max_source=900, max_target=9, max_text=20)
    title = made.inner(tokenizer("tea")["input_ids"])
    assert title == [10 + byte for byte in b"tea"]
    prompt = made.prompt([Entry(title, [])], [], None, comments_first=False)
    assert prompt[0] == 1
    assert prompt.count(1) == 1
    assert 9 not in prompt


def test_long_titles_are_cut_inside_a_prompt() -> None:
    made = builder(max_text=5)
    assert made.inner(ids("abcdefgh")) == ids("abcde")
    assert np.array_equal(made.inner([]), [])
