"""What the documents tell a person to type, or to look at, exists."""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from lsvcr import cli, settings
from lsvcr.baselines.registry import entries
from lsvcr.commands.judge import split_runs
from tests.guards.source import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PATH = re.compile(r"(?<![\w./-])((?:lsvcr|scripts|config|tests|docs|\.ci)/[\w./*{},-]*\w)")
FLAGS = {
    "train.py": settings.AlignSettings,
    "finetune.py": settings.RankSettings,
    "run_lora.sh": settings.AlignSettings,
    "run_hllm.sh": settings.HllmSettings,
    "finetune.sh": settings.RankSettings,
    "train": settings.BaselineSettings,
    "table": settings.TableSettings,
    "clicks-report": settings.ClickReportSettings,
    **{name: command.settings for name, command in cli.COMMANDS.items() if command.settings},
}
EACH = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def commands(document: Path) -> Iterator[list[str]]:
    """Shell commands of the fenced blocks, as words; a line that ends in a backslash goes on."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", document.read_text(), re.M | re.S):
        if language not in ("", "bash", "sh", "console", "shell"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            try:
                words = shlex.split(line, comments=True)
            except ValueError:
                continue  # prose or output, not a command
            if words:
                yield words


def keys_of(script: str) -> set[str]:
    """The KEY names a script takes."""
    text = (ROOT / "scripts" / script).read_text()
    found = re.search(r"^KEYS=\((.*?)\)", text, re.M | re.S)
    return set(found.group(1).split()) if found else set()


@EACH
def test_paths_exist(document: Path):
    for name in PATH.findall(document.read_text()):
        path = re.sub(r"\{[^}]*\}", "*", name)
        assert "*" not in path or list(ROOT.glob(path)), f"{document}: {name} names no file"
        assert "*" in path or (ROOT / path).exists(), f"{document}: {name} does not exist"


@EACH
def test_links_lead_somewhere(document: Path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (document.parent / target).exists(), f"{document}: {target}"


@EACH
def test_commands_and_their_flags_exist(document: Path):
    for words in commands(document):
        program = words.index("lsvcr") + 1 if "lsvcr" in words[:4] else None
        if program is not None and program < len(words) and not words[program].startswith("-"):
            assert words[program] in cli.COMMANDS, f"{document}: lsvcr {words[program]}"
        names = [Path(word).name for word in words]
        known = next((name for name in [*names[:12], *words[program or 0 :][:1]] if name in FLAGS), None)
        if known is None:
            continue
        rest = words[(names.index(known) if known in names else 0) + 1 :]
        kind = FLAGS[known]
        if known == "train":
            assert rest and rest[0] in entries(), f"{document}: lsvcr train names no recommender"
            kind = entries()[rest[0]].settings
        fields = {field.name for field in dataclasses.fields(kind)} | {"config", "help"}
        for word in rest:
            if word in ("|", ">", "&&", ";", "&"):
                break
            if word.startswith("--"):
                flag = word[2:].split("=")[0].replace("-", "_")
                assert flag in fields, f"{document}: {known} has no flag --{flag}"
            elif known.endswith(".sh") and re.match(r"[A-Za-z_]+=", word):
                key = word.split("=")[0]
                assert key in keys_of(known), f"{document}: {known} has no key {key}"


@EACH
def test_scripts_named_exist(document: Path):
    for words in commands(document):
        if words[0] == "bash" and len(words) > 1 and not words[1].startswith("-"):
            assert (ROOT / words[1]).exists(), f"{document}: bash {words[1]}"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_example_of_the_command_line_parses(name):
    from lsvcr.utils.arguments import parse_settings

    words = shlex.split(cli.COMMANDS[name].example)
    assert words[:2] == ["lsvcr", name]
    flags = (
        split_runs(words[2:])[1]
        if name in ("table", "clicks-report")
        else words[3 if name == "train" else 2 :]
    )
    parse_settings(FLAGS[name], flags, f"lsvcr {name}", positionals=cli.COMMANDS[name].places)
