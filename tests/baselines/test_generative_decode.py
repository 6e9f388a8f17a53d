"""Beam search against transformers' own, free and along a trie."""

from collections.abc import Iterable
from functools import reduce
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from lsvcr.baselines.alpaca_prompts import left_padded
from lsvcr.baselines.generative_decode import BeamSettings, beam_search
from lsvcr.baselines.title_trie import Node, TitleTrie

END, PAD = 2, 0
TITLES = ["cats part 0", "cats part 1", "pasta", "past", "hiking part 12", "h"]
PROMPTS = ["Liked: a\n", "Liked: something long enough to need padding elsewhere\n", "x"]


def spelled(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture
def world(tiny_llm: tuple[Any, Any]) -> tuple[Any, list[list[int]], TitleTrie]:
    """The tiny LLM with larger logits, three prompts of different length, and a trie of titles."""
    model, tokenizer = tiny_llm
    # Random weights hardly prefer any token; so scores are far apart and rounding decides nothing.
    model.get_output_embeddings().weight = torch.nn.Parameter(model.get_output_embeddings().weight * 4)
    prompts = [list(spelled(tokenizer, prompt)) for prompt in PROMPTS]
    return model.eval(), prompts, TitleTrie([(*spelled(tokenizer, t), END) for t in TITLES], END)


def settings(beams: int, returned: int, max_new: int = 16, length_penalty: float = 1.0) -> BeamSettings:
    return BeamSettings(beams, returned, max_new, length_penalty, END, PAD)


def walk(trie: TitleTrie, tokens: Iterable[int]) -> Node:
    """The node behind several tokens."""
    return reduce(trie.step, tokens, trie.root)


def theirs(
    model: Any, prompt: list[int], wanted: BeamSettings, trie: TitleTrie | None
) -> list[tuple[Any, float]]:
    """What transformers' `generate` gives for one prompt."""
    config = GenerationConfig(
        num_beams=wanted.beams,
        num_return_sequences=wanted.returned,
        max_new_tokens=wanted.max_new,
        length_penalty=wanted.length_penalty,
        early_stopping=False,
        do_sample=False,
        eos_token_id=END,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
    )

    def allowed(_: int, tokens: torch.Tensor) -> list[int]:
        # Behind an end the end again, since transformers wants one.
        return trie.next_tokens(walk(trie, tokens[len(prompt) :].tolist())).tolist() or [END]

    only = None if trie is None else allowed
    made = model.generate(torch.tensor([prompt]), generation_config=config, prefix_allowed_tokens_fn=only)
    answers = []
    for row, score in zip(
        made.sequences[:, len(prompt) :].tolist(), made.sequences_scores.tolist(), strict=True
    ):
        answers.append((tuple(row[: row.index(END)] if END in row else row), score))
    return answers


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("constrained", [False, True])
def test_it_finds_what_transformers_finds(world: Any, constrained: bool, length_penalty: float) -> None:
    model, prompts, trie = world
    wanted = settings(3, 3, length_penalty=length_penalty)
    ours = beam_search(model, prompts, wanted, trie if constrained else None)
    for prompt, found in zip(prompts, ours, strict=True):
        expected = theirs(model, prompt, wanted, trie if constrained else None)
        # Padding behind an end is none of an answer.
        assert [h.tokens for h in found] == [tuple(t for t in tokens if t != PAD) for tokens, _ in expected]
        assert [h.score for h in found] == pytest.approx([score for _, score in expected], abs=1e-4)


def test_a_score_is_the_mean_log_probability(world: Any) -> None:
    model, prompts, trie = world
    for constraint in (None, trie):
        for prompt, found in zip(
            prompts, beam_search(model, prompts, settings(2, 2), constraint), strict=True
        ):
            for hypothesis in found:
                answer = [*hypothesis.tokens, END][:16]
                with torch.no_grad():
                    logits = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
                chosen = [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]
                assert hypothesis.score == pytest.approx(sum(chosen) / len(answer), abs=1e-4)


@pytest.mark.parametrize("constrained", [False, True])
def test_a_batch_gives_what_each_prompt_gives_alone(world: Any, constrained: bool) -> None:
    model, prompts, trie = world
    wanted, constraint = settings(4, 3), trie if constrained else None
    together = beam_search(model, prompts, wanted, constraint)
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = beam_search(model, [prompt], wanted, constraint)
        assert [h.tokens for h in alone] == [h.tokens for h in found]
        assert [h.score for h in alone] == pytest.approx([h.score for h in found], abs=1e-4)


def test_along_a_trie_every_beam_is_a_title_and_no_title_comes_twice(world: Any, tiny_llm: Any) -> None:
    model, prompts, trie = world
    titles = {spelled(tiny_llm[1], title) for title in TITLES}
    # More beams than titles: all of them, and nothing else.
    for found in beam_search(model, prompts, settings(8, 8), trie):
        assert {h.tokens for h in found} == titles and len(found) == len(titles)
        scores = [h.score for h in found]
        assert scores == sorted(scores, reverse=True)
    # A title that does not fit is no answer, not half of one.
    short = {title for title in titles if len(title) < 6}
    for found in beam_search(model, prompts, settings(8, 8, max_new=6), trie):
        assert {h.tokens for h in found} == short


def test_the_trie_knows_what_may_follow() -> None:
    trie = TitleTrie([(5, 6, 9), (5, 9), (7, 5, 5, 9), (5, 6, 9)], end=9)
    assert len(trie) == 3
    allowed = {
        (): [5, 7],
        (5,): [6, 9],
        (5, 6): [9],
        (5, 6, 9): [],
        (7, 5, 5): [9],
        (7, 5, 5, 9): [],
        (7, 5, 5, 9, 9): [],
        (6,): [],
        (6, 5): [],
    }
    for prefix, tokens in allowed.items():
        assert trie.next_tokens(walk(trie, prefix)).tolist() == tokens
    mask = trie.mask([trie.root, Node(0, 0, 1)], 10)
    assert mask.tolist() == [
        [0.0 if token in (5, 7) else -torch.inf for token in range(10)],
        [-torch.inf] * 10,
    ]


@pytest.mark.parametrize("sequences", [[], [(5, 6)], [(5, 9, 6, 9)], [()]])
def test_a_trie_is_of_sequences_that_end(sequences: list) -> None:
    with pytest.raises(ValueError, match="end token"):
        TitleTrie(sequences, end=9)


def test_left_padding_stands_left() -> None:
    ids, mask = left_padded([[5], [6, 7]], 0)
    assert ids.tolist() == [[0, 5], [6, 7]] and mask.tolist() == [[False, True], [True, True]]
