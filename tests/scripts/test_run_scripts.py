"""run_lora.sh, run_hllm.sh, finetune.sh: keys, flags, defaults and what is refused, by what DRY_RUN=1 prints."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guards.source import ROOT


class Scripts:
    """A copy of the scripts in a folder whose name holds a blank, in the environment of the tests."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "my clone"
        self.here = folder / "somewhere else"
        self.here.mkdir()
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        (self.root / "scripts" / "setup.sh").write_text("exit 0\n")
        binaries = self.root / ".venv" / "bin"
        binaries.mkdir(parents=True)
        found = Path(sys.executable).parent
        (binaries / "activate").write_text(f'PATH="{found}:$PATH"\nexport PYTHONPATH="{ROOT}"\n')
        for name in ("lsvcr", "config"):
            (self.root / name).symlink_to(ROOT / name)
        # Stands for both programs and shows what they were given.
        for name in ("train.py", "finetune.py"):
            (self.root / name).write_text("import sys; print(sys.argv)\n")

    def call(self, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
        """Run a script from another folder."""
        return subprocess.run(
            ["bash", str(self.root / "scripts" / script), *words],
            capture_output=True,
            text=True,
            cwd=self.here,
            env={**os.environ, **environment},
        )

    def commands(self, script: str, *words: str, **environment: str) -> list[list[str]]:
        """The commands a dry run prints, as words."""
        done = self.call(script, "DRY_RUN=1", *words, **environment)
        assert done.returncode == 0, done.stderr
        return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    """A fresh copy."""
    return Scripts(tmp_path)


def flag(command: list[str], name: str) -> str | None:
    """The last value of a flag, which is the one that counts."""
    places = [place for place, word in enumerate(command) if word == f"--{name}"]
    return command[places[-1] + 1] if places else None


def refused(done: subprocess.CompletedProcess, *parts: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    for part in parts:
        assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_stage_one_without_keys_leaves_the_defaults_to_the_program(scripts):
    train, embed = scripts.commands("run_lora.sh")
    assert train[:4] == ["python", "-m", "lsvcr.utils.launch", "torchrun"]
    place = train.index(str(scripts.root / "train.py"))
    # Nothing but the configuration that lies in the repository, whatever folder the caller is in.
    assert train[place + 1 :] == ["--deepspeed", str(scripts.root / "config/ds_z2_bf16.json")]
    assert embed[-7:] == ["-m", "lsvcr", "embed", "--checkpoint", "./ckpt/LSVCR", "--data_path", "./data"]
    assert embed[:place] == train[:place]


def test_every_key_of_stage_one_becomes_its_flag(scripts):
    keys = {
        "BASE_MODEL_PATH": ("model_name_or_path", "tiny-random"),
        "DATASET_PATH": ("data_path", "my data"),
        "OUTPUT_DIR": ("output_dir", "my runs/one"),
        "LR": ("learning_rate", "1e-4"),
        "SEED": ("seed", "7"),
        "EPOCHS": ("num_train_epochs", "2"),
        "DEV_BATCH_SIZE": ("per_device_train_batch_size", "3"),
        "GRAD_ACCUMULARION_STEPS": ("gradient_accumulation_steps", "4"),
        "NUM_WORKERS": ("dataloader_num_workers", "1"),
        "WARMUP": ("warmup_ratio", "0.1"),
        "WEIGHT_DECAY": ("weight_decay", "0.01"),
        "STRATEGY": ("save_strategy", "epoch"),
        "SAVE_EVAL_STEPS": ("save_steps", "5"),
        "DEEPSPEED": ("deepspeed", "config/ds_z2_fp32.json"),
        "GRAD_CKPT": ("gradient_checkpointing", "False"),
    }
    train, embed = scripts.commands("run_lora.sh", *(f"{key}={value}" for key, (_, value) in keys.items()))
    expected = dict(keys.values())
    expected["deepspeed"] = str(scripts.root / expected["deepspeed"])
    assert {name: flag(train, name) for name in expected} == expected
    assert flag(train, "per_device_eval_batch_size") == "3"
    assert flag(embed, "checkpoint") == "my runs/one" and flag(embed, "data_path") == "my data"


def test_every_key_of_hllm_becomes_its_flag(scripts):
    keys = {
        "BASE_MODEL_PATH": ("model_name_or_path", "tiny-random"),
        "USER_MODEL_PATH": ("user_model_name_or_path", "my llm"),
        "DATASET_PATH": ("data_path", "my data"),
        "OUTPUT_DIR": ("output_dir", "my runs/one"),
        "LR": ("learning_rate", "1e-4"),
        "SEED": ("seed", "7"),
        "EPOCHS": ("num_train_epochs", "2"),
        "DEV_BATCH_SIZE": ("per_device_train_batch_size", "3"),
        "GRAD_ACCUMULATION_STEPS": ("gradient_accumulation_steps", "4"),
        "NUM_WORKERS": ("dataloader_num_workers", "1"),
        "WARMUP": ("warmup_ratio", "0.1"),
        "WEIGHT_DECAY": ("weight_decay", "0.01"),
        "STRATEGY": ("save_strategy", "steps"),
        "SAVE_STEPS": ("save_steps", "5"),
        "DEEPSPEED": ("deepspeed", "config/ds_z3_fp32.json"),
        "GRAD_CKPT": ("gradient_checkpointing", "False"),
    }
    words = [f"{key}={value}" for key, (_, value) in keys.items()]
    (train,) = scripts.commands("run_hllm.sh", "NUM_GPUS=3", *words, "--lora_r", "0")
    expected = dict(keys.values()) | {"lora_r": "0", "nproc_per_node": "3"}
    expected["deepspeed"] = str(scripts.root / expected["deepspeed"])
    assert {name: flag(train, name) for name in expected} == expected
    assert train[:4] == ["python", "-m", "lsvcr.utils.launch", "torchrun"]
    place = train.index("-m", 4)
    assert train[place : place + 3] == ["-m", "lsvcr", "hllm"]
    refused(scripts.call("run_hllm.sh", "DRY_RUN=1", "--user_layer", "2"), "did you mean --user_layers?")


def test_hllm_is_trained_by_two_processes_and_told_once(scripts, tiny_data):
    words = ["BASE_MODEL_PATH=tiny-random", f"DATASET_PATH={tiny_data}", "OUTPUT_DIR=run", "NUM_GPUS=2"]
    flags = "--max_steps 1 --llm_layers 1 --user_layers 1 --lora_r 2 --report_to none --bf16 False".split()
    done = scripts.call("run_hllm.sh", *words, "DEV_BATCH_SIZE=4", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Rec, test split") == 1
    report = json.loads((scripts.here / "run" / "metrics.json").read_text())
    assert report["model"] == "hllm_full" and report["protocols"].keys() == {"full", "sampled"}
    manifest = json.loads((scripts.here / "run" / "best" / "manifest.json").read_text())
    assert (manifest["processes"], manifest["step"]) == (2, 1)


def test_flags_go_to_the_program_and_win_over_keys(scripts):
    train, embed = scripts.commands(
        "run_lora.sh", "SEED=1", "--seed", "2", "--output_dir=x", "--lora", "LR=1e-4", "--llm_layers", "10"
    )
    assert (
        flag(train, "seed") == "2"
        and flag(train, "llm_layers") == "10"
        and flag(train, "learning_rate") == "1e-4"
    )
    assert flag(embed, "checkpoint") == "x"


def test_a_dry_run_makes_no_vectors(scripts):
    (train,) = scripts.commands("run_lora.sh", "--dry-run", "OUTPUT_DIR=x")
    assert flag(train, "output_dir") == "x" and "--dry-run" in train


def test_a_yaml_of_settings_is_followed(scripts):
    file = scripts.here / "run.yaml"
    file.write_text("output_dir: from/yaml\ndata_path: yaml data\n")
    train, embed = scripts.commands("run_lora.sh", "--config", str(file))
    assert "--output_dir" not in train
    assert flag(embed, "checkpoint") == "from/yaml" and flag(embed, "data_path") == "yaml data"


def test_the_run_name_names_the_folder(scripts):
    _, embed = scripts.commands("run_lora.sh", "RUN_NAME=trial")
    assert flag(embed, "checkpoint") == "./ckpt/trial"


def test_the_environment_changes_no_key(scripts):
    plain = scripts.commands("run_lora.sh")
    assert scripts.commands("run_lora.sh", LR="9", SEED="9", OUTPUT_DIR="elsewhere", NUM_GPUS="9") == plain


def test_one_machine_takes_a_free_port_and_several_share_one(scripts):
    train, _ = scripts.commands("run_lora.sh", "NUM_GPUS=3")
    assert flag(train, "nproc_per_node") == "3" and flag(train, "rdzv_endpoint") == "localhost:0"
    train, embed = scripts.commands(
        "run_lora.sh", "NUM_GPUS=1", "NNODES=2", "NODE_RANK=1", "MASTER_ADDR=node0", "MASTER_PORT=13324"
    )
    for command in (train, embed):
        found = [flag(command, name) for name in ("nnodes", "node_rank", "master_addr", "master_port")]
        assert found == ["2", "1", "node0", "13324"]
    refused(scripts.call("run_lora.sh", "DRY_RUN=1", "NNODES=2"), "NODE_RANK, MASTER_ADDR and MASTER_PORT")


@pytest.mark.parametrize("script", ["run_lora.sh", "finetune.sh"])
def test_a_port_in_use_is_told_before_anything_starts(scripts, script):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(
            scripts.call(script, "DRY_RUN=1", f"MASTER_PORT={port}"), f"MASTER_PORT={port}", "in use", "leave"
        )
    refused(scripts.call(script, "DRY_RUN=1", "MASTER_PORT=http"), "is no port")


@pytest.mark.parametrize(
    "script, words, parts",
    [
        ("run_lora.sh", ["EPOCH=1"], ["unknown key EPOCH", "did you mean EPOCHS?", "--help"]),
        ("run_lora.sh", ["lr=1"], ["unknown key lr", "did you mean LR?"]),
        ("run_lora.sh", ["NUM_GPUS=two"], ["NUM_GPUS wants a whole number"]),
        ("run_lora.sh", ["NUM_GPUS=0"], ["NUM_GPUS wants a whole number"]),
        ("run_lora.sh", ["--learnig_rate", "1"], ["--learnig_rate", "did you mean --learning_rate?"]),
        ("run_lora.sh", ["LR=fast"], ["--learning_rate wants a number"]),
        ("run_lora.sh", ["STRATEGY=step"], ["--save_strategy is one of", "steps"]),
        ("run_lora.sh", ["demo"], ["unexpected argument 'demo'"]),
        ("finetune.sh", ["TSK=Rec"], ["unknown key TSK", "did you mean TASK?"]),
        ("finetune.sh", ["SCHEDULER_TYPE=liner"], ["--lr_scheduler_type is one of", "did you mean linear?"]),
        ("finetune.sh", ["MIXED_PRECISION=half"], ["MIXED_PRECISION=half", "choose no, bf16 or fp16"]),
        ("finetune.sh", ["ACCELERATE=absent.yaml"], ["ACCELERATE=absent.yaml is not there"]),
        ("finetune.sh", ["--neg_comment_nmu", "3"], ["did you mean --neg_comment_num?"]),
    ],
)
def test_what_is_misspelt_is_refused_with_the_nearest(scripts, script, words, parts):
    refused(scripts.call(script, "DRY_RUN=1", *words), *parts)


@pytest.mark.parametrize("script", ["run_lora.sh", "run_hllm.sh", "finetune.sh"])
def test_help_names_every_key(scripts, script):
    done = scripts.call(script, "--help")
    text = (scripts.root / "scripts" / script).read_text()
    keys = text[text.index("KEYS=(") + 6 :].split(")")[0].split()
    assert done.returncode == 0 and len(keys) > 20
    for key in keys:
        assert key in done.stdout


def test_stage_two_by_its_keys(scripts):
    keys = {
        "TASK": ("finetune_task", "CommRank"),
        "PRETRAIN_CKPT": ("pretrain_checkpoint", "my ckpt"),
        "DATASET_PATH": ("data_path", "my data"),
        "OUTPUT_DIR": ("output_dir", "out"),
        "PEMB": ("photo_emb_file", "photo_embs.npy"),
        "CEMB": ("comment_emb_file", "comment_embs.npy"),
        "LR": ("learning_rate", "1e-4"),
        "SEED": ("seed", "7"),
        "EPOCHS": ("num_train_epochs", "3"),
        "WARMUP": ("warmup_ratio", "0.1"),
        "WEIGHT_DECAY": ("weight_decay", "0.01"),
        "SCHEDULER_TYPE": ("lr_scheduler_type", "linear"),
        "DEV_BATCH_SIZE": ("per_device_train_batch_size", "64"),
        "GRAD_ACCUMULATION_STEPS": ("gradient_accumulation_steps", "2"),
        "NUM_WORKERS": ("dataloader_num_workers", "1"),
        "EVAL_STEPs": ("eval_steps", "2"),
        "HIS_LEN": ("max_phis_len", "20"),
        "TEST_CAND_NUM": ("max_candidate_num", "50"),
        "NEG": ("neg_comment_num", "9"),
        "W": ("id_text_loss_weight", "0.2"),
    }
    (command,) = scripts.commands("finetune.sh", *(f"{key}={value}" for key, (_, value) in keys.items()))
    assert {name: flag(command, name) for name, _ in keys.values()} == dict(keys.values())
    assert flag(command, "max_chis_len") == flag(command, "max_position") == "20"
    assert flag(command, "evaluation_strategy") == "steps"
    assert flag(command, "config_file") == str(scripts.root / "config/accelerate_config.yaml")
    assert "--mixed_precision" not in command
    (command,) = scripts.commands("finetune.sh", "MIXED_PRECISION=bf16")
    assert flag(command, "mixed_precision") == "bf16"
    assert command.index("--mixed_precision") < command.index(str(scripts.root / "finetune.py"))


def test_each_task_has_its_own_folder_and_starts_from_stage_one(scripts):
    for words, task in [([], "Rec"), (["TASK=CommRank"], "CommRank")]:
        (command,) = scripts.commands("finetune.sh", *words)
        assert flag(command, "finetune_task") == task
        assert flag(command, "output_dir") == f"./ckpt/finetune/FtLSVCR-{task}"
        assert flag(command, "pretrain_checkpoint") == "./ckpt/LSVCR"


def test_without_stage_one_the_untuned_vectors_are_made_once(scripts):
    words = ["PRETRAIN_CKPT=none", "DATASET_PATH=ds", "BASE_MODEL_PATH=tiny-random"]
    embed, command = scripts.commands("finetune.sh", *words)
    assert embed[embed.index("embed") :] == shlex.split(
        "embed --checkpoint none --model_name_or_path tiny-random --data_path ds"
    )
    assert flag(command, "pretrain_checkpoint") == "none"
    assert len(scripts.commands("finetune.sh", *words, "--disable_text")) == 1
    assert len(scripts.commands("finetune.sh", *words, "PEMB=mine.npy")) == 1
    (scripts.here / "ds").mkdir()
    (scripts.here / "ds" / "photo_full_embs.npy").touch()
    assert len(scripts.commands("finetune.sh", *words)) == 1


def test_a_machine_without_gpus_shares_its_cores_among_the_processes(scripts):
    """The launchers alone would give one core to each process, whatever the machine has."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    show = 'source scripts/lib.sh; share_cores "$1" "$2"; echo "${OMP_NUM_THREADS:-unset}"'

    def threads(gpus: int, processes: int, **more: str) -> str:
        words = ["bash", "-c", f"nproc() {{ echo 8; }}; {show}", "bash", str(gpus), str(processes)]
        done = subprocess.run(
            words, cwd=scripts.root, capture_output=True, text=True, check=True, env={**environment, **more}
        )
        return done.stdout.strip()

    assert [threads(0, 1), threads(0, 2), threads(0, 3), threads(0, 16)] == ["8", "4", "2", "1"]
    assert threads(2, 2) == "unset"
    assert threads(0, 2, OMP_NUM_THREADS="3") == "3"


def test_the_processes_are_started(scripts):
    """No dry run: two processes of the stand-in program, then embed, which has no dataset to work on."""
    done = scripts.call("run_lora.sh", "DATASET_PATH=no such folder", "NUM_GPUS=2")
    assert done.returncode == 2, done.stderr
    assert done.stdout.count("'--data_path', 'no such folder'") == 2
    assert "error: " in done.stderr and "no such folder" in done.stderr and "Traceback" not in done.stderr
