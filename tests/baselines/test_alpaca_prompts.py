"""Prompts and batches, token by token."""

import pytest

from lsvcr.baselines.alpaca import Record
from lsvcr.baselines.alpaca_prompts import Example, PromptWriter, collate
from lsvcr.llm.tiny import tiny_tokenizer
from lsvcr.utils.errors import UserError

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}:{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def record(*titles: str) -> Record:
    return Record(7, "Next?", "Liked: ", titles, "cats", '"')


def writer(**changed: object) -> PromptWriter:
    return PromptWriter(
        **{"tokenizer": tiny_tokenizer(), "template": "alpaca", "max_source": 400, "max_target": 8, **changed}
    )


def text(ids: list[int]) -> str:
    return tiny_tokenizer().decode(ids)


def test_the_alpaca_form_letter_by_letter() -> None:
    assert text(writer().prompt(record("pasta", "chess"))) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        '### Instruction:\nNext?\n\n### Input:\nLiked: "pasta", "chess"\n\n### Response:\n'
    )


def test_an_answer_ends_and_is_cut_to_leave_room_for_its_end() -> None:
    w = writer()
    assert text(w.answer('"cats"')) == '"cats"</s>' and text(w.answer('"hiking"')) == '"hiking</s>'
    assert w.whole_answer('"cat"') == w.answer('"cat"') and w.whole_answer('"hiking"') is None


def test_the_oldest_titles_go_first_and_never_the_request() -> None:
    titles = [f"title {number}" for number in range(9)]
    everything = writer(max_source=10**6).prompt(record(*titles))
    for room in range(len(everything) - 85, len(everything)):
        cut = text(writer(max_source=room).prompt(record(*titles)))
        kept = cut.count('"title')
        assert 1 <= kept < 9 and len(cut) <= room
        told = ", ".join(f'"{title}"' for title in titles[9 - kept :])
        assert cut.endswith(f"Next?\n\n### Input:\nLiked: {told}\n\n### Response:\n")
        # One more would not have fitted.
        assert len(cut) + len('"title 0", ') > room


def test_a_request_that_does_not_fit_is_told() -> None:
    with pytest.raises(UserError, match=r"--max_source_length 100 .* sample 7: give at least 224"):
        writer(max_source=100).prompt(record("pasta", "chess"))
    with pytest.raises(UserError, match="--max_target_length 1"):
        writer(max_target=1)


def test_a_chat_template_frames_the_record_and_no_title_forges_its_tokens() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(UserError, match="--template alpaca"):
        writer(template="chat")
    tokenizer.chat_template = TEMPLATE
    ids = writer(template="chat", tokenizer=tokenizer).prompt(record("</s><s>"))
    assert text(ids) == '<s>user:Next?\nLiked: "</s><s>"</s><s>assistant:'
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    # Two that the template opens with, one that closes the user's turn; the title's are plain letters.
    assert [token for token in ids if token in special] == [1, 2, 1]


def test_padding_is_left_and_labels_are_told_by_their_place() -> None:
    # 2 is the end token and fills up, too.
    examples = [Example([5, 6], [7, 2]), Example([2, 8, 9], [2])]
    batch = collate(examples, pad=2, train_on_inputs=False)
    assert batch.ids.tolist() == [[5, 6, 7, 2], [2, 8, 9, 2]]
    longer = collate([*examples, Example([5], [2])], pad=2, train_on_inputs=False)
    assert longer.ids[2].tolist() == [2, 2, 5, 2]
    assert longer.mask[2].tolist() == [False, False, True, True]
    assert longer.positions.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 0, 1]]
    assert longer.labels.tolist() == [
        [-100, -100, 7, 2],
        [-100, -100, -100, 2],
        [-100, -100, -100, 2],
    ]


def test_on_inputs_every_token_counts_that_another_stands_before() -> None:
    batch = collate([Example([5, 6], [7, 2]), Example([2], [2])], pad=2, train_on_inputs=True)
    assert batch.labels.tolist() == [[-100, 6, 7, 2], [-100, -100, -100, 2]]
