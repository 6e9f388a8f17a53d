"""The `lsvcr` command as a person meets it."""

import subprocess
import sys

import pytest

import lsvcr
from lsvcr import cli
from lsvcr.commands.command import Command


def test_alone_it_lists_its_commands(capsys):
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert name in text and command.summary in text


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and cli.COMMANDS[name].example in text and f"usage: lsvcr {name}" in text


@pytest.mark.parametrize(
    "words, parts",
    [
        (["prepar"], ["unknown command 'prepar'", "did you mean prepare?"]),
        (["xyzzy"], ["unknown command 'xyzzy'", "`lsvcr` lists them"]),
        (["prepare", "kuaikomt"], ["SOURCE is one of kuaicomt, microlens", "did you mean kuaicomt?"]),
        (["prepare", "kuaicomt"], ["--raw and --out", "lsvcr prepare kuaicomt --raw"]),
        (["simulate"], ["needs --out"]),
        (["evaluate", "ckpt"], ["needs --data"]),
        (["train", "sasrek"], ["no recommender 'sasrek'", "did you mean sasrec?"]),
        (["train", "xyzzy"], ["no recommender 'xyzzy'", "there are", "popularity"]),
        (["train", "--seed", "1"], ["needs the name of a recommender", "lsvcr train sasrec"]),
        (["train", "sasrec", "--max_hiss", "9"], ["did you mean --max_his?"]),
        (["train", "popularity", "--learning_rate", "1"], ["unknown flag --learning_rate"]),
        (["train", "sasrec", "--metric_for_best_model", "ndgc@10"], ["ndgc"]),
        (["train", "sasrec", "--max_his", "0"], ["--max_his 0 must be above 0"]),
        (["embed", "--chekpoint", "x"], ["did you mean --checkpoint?"]),
        (["simulate", "--out", "x", "--seed", "-1"], ["--seed -1 must be 0 or more"]),
        (
            ["prepare", "kuaicomt", "--raw", ".", "--out", "x/y", "--seed", "-1"],
            ["--seed -1 must be 0 or more"],
        ),
        (["embed", "--text_token_budget", "-1"], ["--text_token_budget -1 must be 0 or more"]),
        (
            ["convert", "x", "--out", "y", "--model_name_or_path", "z", "--heads", "0"],
            ["--heads 0 must be above 0"],
        ),
        (["train", "sasrec", "--seed", "-1"], ["--seed -1 must be 0 or more"]),
        (["hllm", "--seed", "-1"], ["--seed -1 must be 0 or more"]),
        (["clicks", "--seed", "-1"], ["--seed -1 must be 0 or more"]),
        (["tune", "--seed", "-1"], ["--seed -1 must be 0 or more"]),
        (["generate", "x", "--seed", "-1"], ["--seed -1 must be 0 or more"]),
        (["ground", "x", "--text_token_budget", "-1"], ["--text_token_budget -1 must be 0 or more"]),
        (["evaluate-llm", "x", "--data", "y", "--seed", "-1"], ["--seed -1 must be 0 or more"]),
    ],
)
def test_what_is_wrong_is_a_sentence_and_code_2(words, parts, capsys):
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for part in parts:
        assert part in captured.err


def test_train_lists_its_recommenders_and_the_flags_of_one(capsys):
    from lsvcr.baselines.registry import entries

    with pytest.raises(SystemExit) as stop:
        cli.main(["train"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(name in text and entry.summary in text for name, entry in entries().items())
    for name, own, other in (
        ("sasrec", "--gbce_t", "--neighbours"),
        ("item_knn", "--neighbours", "--gbce_t"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["train", name, "--help"])
        text = capsys.readouterr().out
        assert own in text and other not in text and "--max_his" in text and f"lsvcr train {name}" in text


def test_control_c_is_code_130(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "embed", Command("x", "y", interrupted))
    assert cli.main(["embed"]) == 130 and "Ctrl-C" in capsys.readouterr().err


def test_version_and_module_form():
    done = subprocess.run(
        [sys.executable, "-m", "lsvcr", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"lsvcr {lsvcr.__version__}\n"


def test_simulate_then_prepare(tmp_path):
    raw, data = str(tmp_path / "raw"), str(tmp_path / "data")
    assert cli.main(["simulate", "--preset", "tiny", "--out", raw]) == 0
    assert cli.main(["prepare", "kuaicomt", "--raw", raw, "--out", data]) == 0
    assert (tmp_path / "data" / "manifest.json").exists()
