"""ChatGLM's tokenizer: every recorded id, and sentencepiece's own ids for any text and any kind of model."""

import copy
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from lsvcr.data.prompts import special_tokens
from lsvcr.llm.chatglm_tokenizer import ChatGLMTokenizer, is_chatglm_folder, open_tokenizer
from lsvcr.llm.encoder import tokenize
from lsvcr.llm.loading import load_tokenizer
from lsvcr.utils.errors import UserError

FOLDER = Path(__file__).parent / "chatglm3-tiny"
RECORDED = json.loads((FOLDER / "tokenizer_cases.json").read_text(encoding="utf-8"))
PREFIX = RECORDED["prefix"]
PIECES = SentencePieceProcessor(model_file=str(FOLDER / "tokenizer.model"))
TOKENIZER = open_tokenizer(FOLDER)

SCRAPS = (
    "小猫", "视频", "评论区", "cat", " the", "ing", "▁", "  ", " ", "\n", "\t", "\u3000", "，", "。", "é", "ﬁ", "😂",
    "👩\u200d👧", "龘", "１２", "42", "[gMASK]", "sop", "eop", "<|user|>", "</s>", "<unk>", "<0x0A>", "\x00", "안녕",
)  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(SCRAPS), st.text(max_size=4)), max_size=12).map("".join)


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: case["text"][:12])
def test_recorded_texts(case):
    text = case["text"]
    assert TOKENIZER(text, add_special_tokens=False)["input_ids"] == case["ids"]
    assert TOKENIZER(text)["input_ids"] == case["ids_with_special"]
    cut = TOKENIZER(text, truncation=True, max_length=12)["input_ids"]
    assert cut == case["ids_with_special_max12"]
    cut = TOKENIZER(text, add_special_tokens=False, truncation=True, max_length=5)["input_ids"]
    assert cut == case["ids_max5"]
    assert TOKENIZER.decode(case["ids"]) == case["decoded"]


def test_recorded_pairs_and_batches():
    for pair in RECORDED["pairs"]:
        assert TOKENIZER(pair["text"], pair["text_pair"])["input_ids"] == pair["ids_with_special"]
    for batch in RECORDED["padded_batches"]:
        found = TOKENIZER(batch["texts"], return_tensors="pt", **batch["options"])
        assert found["input_ids"].tolist() == batch["input_ids"]
        assert found["attention_mask"].tolist() == batch["attention_mask"]
        positions = (found["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        assert positions.tolist() == batch["position_ids"]


def test_special_tokens_have_their_ids_and_no_text_gets_them():
    expected = dict(RECORDED["special_token_ids"])
    assert (
        TOKENIZER.pad_token_id == TOKENIZER.unk_token_id == expected.pop("pad_id") == expected.pop("unk_id")
    )
    assert TOKENIZER.eos_token_id == expected.pop("eos_id")
    assert TOKENIZER.bos_token_id is None and expected.pop("bos_id") == 1
    assert TOKENIZER.convert_tokens_to_ids(list(expected)) == list(expected.values())
    assert (TOKENIZER.vocab_size, len(TOKENIZER)) == (RECORDED["spm_pieces"], RECORDED["total_tokens"])
    typed = TOKENIZER("".join(expected) + "</s><unk>", add_special_tokens=False)["input_ids"]
    assert not {0, 1, 2, *expected.values()} & set(typed)


def test_special_tokens_mask_shows_what_was_added():
    found = TOKENIZER("a cat", "小猫", return_special_tokens_mask=True)
    inner = len(found["input_ids"]) - 3
    assert found["special_tokens_mask"] == [1, 1, *[0] * inner, 1]


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(TEXTS)
def test_any_text_has_the_ids_of_sentencepiece(text):
    ids = PIECES.encode(text)
    assert TOKENIZER(text)["input_ids"] == [*PREFIX, *ids]
    assert TOKENIZER(text, add_special_tokens=False, truncation=True, max_length=4)["input_ids"] == ids[:4]
    assert TOKENIZER.decode(ids) == PIECES.decode(ids)


def train(path, texts, **options):
    """A sentencepiece model made of a few texts."""
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 3),
        model_writer=written,
        minloglevel=2,
        **{"model_type": "bpe", "vocab_size": 330, **options},
    )
    path.write_bytes(written.getvalue())


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "nfkc", "byte_fallback": True, "vocab_size": 560},
        {"normalization_rule_name": "identity", "character_coverage": 0.98},
        {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"user_defined_symbols": ["<n>", "😂"]},
    ],
    ids=["nfkc", "spaces-removed", "no-leading-space", "symbols"],
)
def test_any_kind_of_sentencepiece_model(tmp_path, options):
    path = tmp_path / "tokenizer.model"
    # Without the two names that are letters: see the next test.
    train(path, [case["text"] for case in RECORDED["cases"] if "sop" not in case["text"]], **options)
    pieces, tokenizer = SentencePieceProcessor(model_file=str(path)), ChatGLMTokenizer(path)

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(TEXTS)
    def agree(text):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == pieces.encode(text)

    agree()


def test_a_piece_with_the_name_of_a_special_token_is_that_token_as_in_the_original(tmp_path):
    path = tmp_path / "tokenizer.model"
    train(path, ["xsop ysop zsop"], vocab_size=12)
    pieces, tokenizer = SentencePieceProcessor(model_file=str(path)), ChatGLMTokenizer(path)
    assert pieces.encode("xsop", out_type=str)[-1] == "sop"
    assert tokenizer("xsop")["input_ids"][-1] == tokenizer.convert_tokens_to_ids("sop") == 12 + 3


def test_as_the_rest_of_the_package_uses_it():
    assert special_tokens(TOKENIZER) == (PREFIX, [])
    ids = tokenize(TOKENIZER, ["小猫", " ", "", "a cat </s>"], max_tokens=5)
    assert ids[0] == [*PREFIX, *PIECES.encode("小猫")] and ids[1] == ids[2] == []
    assert ids[3] == [*PREFIX, *PIECES.encode("a cat </s>")[:3]]


def test_decoding_names_what_opens_a_text_or_leaves_it_out():
    ids = TOKENIZER("a cat", "sop")["input_ids"]
    assert TOKENIZER.decode(ids) == "[gMASK]sopa cat sop"
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "a cat sop"


def test_copies_and_saved_tokenizers_are_the_same(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)  # onto itself: the model file is not lost
    assert is_chatglm_folder(tmp_path)
    again = open_tokenizer(tmp_path)
    again.save_pretrained(tmp_path)
    copies = [
        copy.deepcopy(TOKENIZER),
        again,
        open_tokenizer(tmp_path),
        ChatGLMTokenizer.from_pretrained(tmp_path),
    ]
    for other in copies:
        for case in RECORDED["cases"]:
            assert other(case["text"])["input_ids"] == case["ids_with_special"]
        assert (other.padding_side, other.pad_token_id, other.eos_token_id) == ("left", 0, 2)


def test_load_tokenizer_and_whose_folder_it_is(tmp_path):
    assert isinstance(load_tokenizer(str(FOLDER)), ChatGLMTokenizer)
    assert not is_chatglm_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    assert not is_chatglm_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer_config.json cannot be read"):
        is_chatglm_folder(tmp_path)


def test_no_model_and_one_of_another_kind(tmp_path):
    with pytest.raises(UserError, match="tokenizer.model does not exist"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(UserError, match="tokenizer.model is no sentencepiece model.*GLM-4"):
        open_tokenizer(tmp_path)
