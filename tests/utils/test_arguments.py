"""Flags and YAML into settings: what is accepted, and what every refusal says."""

import dataclasses
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Literal

import pytest

from lsvcr.settings import (
    AlignSettings,
    EmbedSettings,
    PrepareSettings,
    RankSettings,
    SimulateSettings,
    option,
)
from lsvcr.utils.arguments import load_search, load_settings, nearest, parse_settings
from lsvcr.utils.errors import UserError


@dataclass
class Base:
    """An inherited part."""

    width: int = option(64, "width of everything")


@dataclass
class Example(Base):
    """One field of every kind."""

    rate: float = option(1e-3, "how fast")
    name: str = option("a", "what it is called")
    swift: bool = option(False, "whether to hurry")
    mode: Literal["steps", "epoch", "no"] = option("steps", "when")
    short: bool | None = option(None, "whether to be brief")


def parse(*words: str, **more) -> Example:
    return parse_settings(Example, words, "prog", **more)


def test_no_flags_give_the_defaults():
    assert parse() == Example()


@pytest.mark.parametrize(
    "words, field, expected",
    [
        (["--rate", "3e-4"], "rate", 3e-4),
        (["--rate=3"], "rate", 3.0),
        (["--width", "-1"], "width", -1),
        (["--width", "1e3"], "width", 1000),
        (["--width", "50.0"], "width", 50),
        (["--name", "a=b c"], "name", "a=b c"),
        (["--name="], "name", ""),
        (["--name", "--x"][:1] + [""], "name", ""),
        (["--swift"], "swift", True),
        (["--short"], "short", True),
        (["--short", "False"], "short", False),
        (["--short", "auto"], "short", None),
        (["--swift", "True"], "swift", True),
        (["--swift", "1"], "swift", True),
        (["--swift=false"], "swift", False),
        (["--swift", "False"], "swift", False),
        (["--swift", "--width", "3"], "swift", True),
        (["--mode", "no"], "mode", "no"),
        (["--width", "3", "--width", "5"], "width", 5),
    ],
)
def test_forms_of_a_flag(words, field, expected):
    value = getattr(parse(*words), field)
    assert value == expected and type(value) is type(expected)


def test_dashes_and_underscores_are_the_same():
    assert parse_settings(AlignSettings, ["--learning-rate", "1"], "p").learning_rate == 1.0


@pytest.mark.parametrize(
    "words, parts",
    [
        (["--raet", "3"], ["--raet", "did you mean --rate?", "prog --help"]),
        (["--Rate", "3"], ["--Rate", "--rate?"]),
        (["--zzzz", "3"], ["unknown flag --zzzz", "prog --help"]),
        (["--rate", "fast"], ["--rate wants a number", "'fast'"]),
        (["--rate", "nan"], ["--rate wants a number"]),
        (["--rate", "inf"], ["--rate wants a number"]),
        (["--width", "1.5"], ["--width wants a whole number", "'1.5'"]),
        (["--width", "1e999"], ["--width wants a whole number"]),
        (["--width"], ["--width needs a value"]),
        (["--width", "--rate", "1"], ["--width needs a value"]),
        (["--swift", "maybe"], ["--swift wants True or False", "'maybe'"]),
        (["--mode", "step"], ["--mode is one of steps, epoch, no", "did you mean steps?"]),
        (["stray"], ["unexpected argument 'stray'"]),
        (["-w", "3"], ["unexpected argument '-w'"]),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(words, parts):
    with pytest.raises(UserError) as error:
        parse(*words)
    for part in parts:
        assert part in str(error.value)


def test_positional_fields():
    assert parse("epoch", "--swift", "box", positionals=("mode", "name")) == Example(
        mode="epoch", swift=True, name="box"
    )
    with pytest.raises(UserError, match="MODE is one of"):
        parse("epok", positionals=("mode",))


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("# purpose\nrate: 1e-2\nwidth: 8\nswift: true\nmode: no\n")
    expected = Example(rate=0.01, width=4, swift=True, mode="no")
    assert parse("--config", str(file), "--width", "4") == expected
    assert parse("--width", "4", f"--config={file}") == expected
    assert load_settings(Example, file) == dataclasses.replace(expected, width=8)


def test_an_empty_yaml_is_the_defaults(tmp_path):
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing yet\n")
    assert load_settings(Example, file) == Example()


@pytest.mark.parametrize(
    "text, parts",
    [
        ("rate: 1\nwdith: 3\n", ["line 2", "'wdith'", "did you mean width?"]),
        ("rate: 1\nrate: 2\n", ["line 2", "'rate'", "twice"]),
        ("\nrate: quick\n", ["line 2: rate wants a number", "'quick'"]),
        ("width: true\n", ["line 1: width wants a whole number"]),
        ("width: 1.5\n", ["width wants a whole number"]),
        ("name:\n", ["name wants a text"]),
        ("name: [a]\n", ["name wants a text"]),
        ("rate: {a: 1}\n", ["rate wants a number"]),
        ("- rate\n", ["field: value"]),
        ("rate: [\n", ["not valid YAML"]),
    ],
)
def test_a_broken_yaml_is_told_with_file_and_line(tmp_path, text, parts):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_settings(Example, file)
    for part in [str(file), *parts]:
        assert part in str(error.value)


def test_a_missing_yaml_is_told(tmp_path):
    with pytest.raises(UserError, match="absent.yaml cannot be read"):
        parse("--config", str(tmp_path / "absent.yaml"))


def test_a_search_section_is_read_apart_and_passed_over_elsewhere(tmp_path):
    file = tmp_path / "example.yaml"
    file.write_text("width: 8\nsearch:\n  rate: [1e-3, 1]\n  mode: [epoch, no]\n")
    assert load_settings(Example, file) == Example(width=8)
    assert parse_settings(Example, ["--config", str(file)], "x") == Example(width=8)
    found = load_search(Example, file)
    assert found == {"rate": [1e-3, 1.0], "mode": ["epoch", "no"]} and isinstance(found["rate"][1], float)
    file.write_text("width: 8\n")
    assert load_search(Example, file) == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("search:\n  rat: [1]\n", "line 2: unknown key 'rat'; did you mean rate?"),
        ("search:\n  rate: 1\n", "line 2: rate wants a list of values"),
        ("search:\n  rate: []\n", "line 2: rate wants a list of values"),
        ("search:\n  width: [8, wide]\n", "line 2: width wants a whole number, not 'wide'"),
        ("search:\n  width: [8]\n  width: [9]\n", "line 3: key 'width' appears twice"),
        ("width: 8\nsearch: 3\n", "line 2: search must hold lines"),
        ("serch:\n  width: [8]\n", "unknown key 'serch'; did you mean search?"),
    ],
)
def test_a_broken_search_section_is_refused_by_every_command(tmp_path, text, told):
    file = tmp_path / "example.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_settings(Example, file)
    assert told in str(error.value)


def test_help_tells_every_flag_its_default_and_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--width", "x", "--help", description="Does a thing.", example="prog --rate 1")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for part in ["usage: prog", "Does a thing.", "  prog --rate 1", "--rate X", "how fast (default 0.001)"]:
        assert part in text
    assert "--mode steps|epoch|no" in text and "--config FILE" in text and "--swift True|False" in text
    assert text.index("--rate") < text.index("--width")  # the class's own flags come before inherited ones


@pytest.mark.parametrize(
    "cls", [AlignSettings, RankSettings, EmbedSettings, PrepareSettings, SimulateSettings]
)
def test_every_field_of_every_command_has_a_help_line(cls, capsys):
    with pytest.raises(SystemExit):
        parse_settings(cls, ["--help"], "prog")
    text = capsys.readouterr().out
    for field in dataclasses.fields(cls):
        assert f"--{field.name} " in text and field.metadata["help"] in text


def test_the_reference_commands_are_accepted():
    """Each flag of the two commands in the method's published README, with its values."""
    align = parse_settings(
        AlignSettings,
        "--seed 2024 --model_name_or_path /THUDM/chatglm3-6b/ --output_dir ./ckpt/x --data_path ./data/ "
        "--per_device_train_batch_size 2 --per_device_eval_batch_size 2 --dataloader_num_workers 12 "
        "--gradient_accumulation_steps 8 --gradient_checkpointing True --learning_rate 3e-4 --num_train_epochs 1 "
        "--warmup_ratio 0.03 --weight_decay 0.0 --save_strategy steps --bf16 True --lora True "
        "--deepspeed ./config/ds_z2_bf16.json --save_steps 1000 --load_best_model_at_end False".split(),
        "python train.py",
    )
    assert (
        align.load_best_model_at_end is False
        and align.lora is True
        and align.gradient_accumulation_steps == 8
    )
    rank = parse_settings(
        RankSettings,
        "--seed 2024 --output_dir ./ckpt/y --pretrain_checkpoint ./ckpt/LSVCR/adapter_model.bin --data_path ./data/ "
        "--per_device_train_batch_size 512 --per_device_eval_batch_size 512 --dataloader_num_workers 12 "
        "--gradient_accumulation_steps 1 --learning_rate 1e-3 --weight_decay 1e-5 --lr_scheduler_type constant "
        "--num_train_epochs 50 --warmup_ratio 0.0 --evaluation_strategy steps --eval_steps 1 --finetune_task Rec "
        "--max_candidate_num 100 --max_position 50 --max_phis_len 50 --max_chis_len 50 --id_text_loss_weight 0.1 "
        "--photo_emb_file photo_embs.npy --comment_emb_file comment_embs.npy --neg_comment_num 19".split(),
        "python finetune.py",
    )
    assert rank.evaluation_strategy == "steps" and rank.neg_comment_num == 19 and rank.weight_decay == 1e-5


def test_nearest_ignores_case_and_keeps_silent_when_nothing_is_close():
    assert nearest("lr", ["LR", "SEED"]) == "did you mean LR?"
    assert nearest("qqqq", ["LR", "SEED"]) == ""


def test_parsing_imports_no_torch():
    code = (
        "import sys; from lsvcr.settings import AlignSettings; from lsvcr.utils.arguments import parse_settings\n"
        "parse_settings(AlignSettings, ['--lora', 'True'], 'p'); assert 'torch' not in sys.modules"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.monotonic() - started < 5
