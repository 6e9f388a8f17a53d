"""Every configuration in config/ can be used."""

import json
import re
from pathlib import Path

import pytest
import yaml

from lsvcr import settings
from lsvcr.baselines.generative_settings import TuneSettings
from lsvcr.baselines.gpsd_settings import ClickSettings
from lsvcr.baselines.registry import entries
from lsvcr.settings.bounds import check_bounds
from lsvcr.utils.arguments import load_settings
from tests.guards.source import ROOT

CONFIG = ROOT / "config"
CLASSES = {
    "align": settings.AlignSettings,
    "finetune": settings.RankSettings,
    "baselines": settings.FittedSettings,
    "compare": settings.RankSettings,
    "clicks": ClickSettings,
    "generative": TuneSettings,
    "hllm": settings.HllmSettings,
}
"""Folder of config/ or of config/small/ -> settings class, of which each recommender in baselines/ has its own."""
SMALL = "small"


def found(folder: str) -> list[Path]:
    """All YAML files below the folders of this name, however deep."""
    below = (path for base in (CONFIG, CONFIG / SMALL) for path in (base / folder).rglob("*"))
    return sorted(path for path in below if path.suffix in (".yaml", ".yml"))


def test_every_folder_is_known_and_holds_something():
    folders = [path for base in (CONFIG, CONFIG / SMALL) for path in base.iterdir() if path.is_dir()]
    for folder in sorted(path for path in folders if path.name != SMALL):
        assert CLASSES.get(folder.name) is not None, f"name the settings class of {folder} in CLASSES"
        assert found(folder.name), f"{folder} holds no YAML"


@pytest.mark.parametrize(
    "path",
    [path for name in CLASSES if name != "baselines" for path in found(name)],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_a_run_file_builds_its_settings_and_says_what_it_is(path: Path):
    folder = next(part for part in path.relative_to(CONFIG).parts if part != SMALL)
    check_bounds(load_settings(CLASSES[folder], path))
    assert path.read_text().startswith("#"), f"{path} opens with its purpose and launch command"


@pytest.mark.parametrize("path", found("baselines"), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_recommenders_file_builds_the_settings_of_the_one_its_command_names(path: Path):
    text = path.read_text()
    named = re.search(r"^# .*lsvcr train (\w+) .*--config (\S+)", text.replace("\\\n#", " "), re.M)
    assert named and text.startswith("#"), f"{path} opens with its purpose and launch command"
    assert ROOT / named[2] == path
    check_bounds(load_settings(entries()[named[1]].settings, path))


@pytest.mark.parametrize("path", sorted(CONFIG.glob("accelerate*.yaml")), ids=lambda path: path.name)
def test_an_accelerate_file_is_one(path: Path):
    from accelerate.commands.config.config_args import load_config_from_file

    load_config_from_file(str(path))
    assert "num_processes" in yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*.json")), ids=lambda path: path.name)
def test_a_deepspeed_file_is_of_the_stage_and_precision_in_its_name(path: Path):
    content = json.loads(path.read_text())
    precision = "bf16" if content["bf16"]["enabled"] else "fp32"
    assert path.name == f"ds_z{content['zero_optimization']['stage']}_{precision}.json"
