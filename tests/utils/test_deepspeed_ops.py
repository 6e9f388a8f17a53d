"""DeepSpeed trains on a machine without a C++ compiler."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, shutil, torch, deepspeed
from lsvcr.utils.deepspeed_ops import prepare_cpu_ops
assert shutil.which("ninja") is None and shutil.which("g++") is None and shutil.which("c++") is None
sentence = prepare_cpu_ops()
torch.manual_seed(0)
model = torch.nn.Linear(4, 1, bias=False)
config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True}
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
before = model.weight.detach().clone()
engine.backward(engine(torch.full((1, 4), float(engine.global_rank))).sum())
engine.step()
# The mean of the gradients of both processes, 0 and 1, has gone into the step of each.
assert torch.allclose(before - model.weight.detach(), torch.full((1, 4), 0.5)), model.weight
# One write a process: two processes share the pipe.
os.write(1, f"{engine.global_rank} {sentence}\\n".encode())
"""


def test_two_processes_train_without_a_compiler(tmp_path: Path):
    (tmp_path / "job.py").write_text(SCRIPT)
    tools = tmp_path / "bin"
    tools.mkdir()
    environment = {
        "PATH": str(tools),
        "HOME": str(tmp_path),
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    rendezvous = ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    done = subprocess.run(
        [*launcher, *rendezvous, str(tmp_path / "job.py")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    told = sorted(line for line in done.stdout.splitlines() if line[:2] in ("0 ", "1 "))
    assert len(told) == 2 and "no C++ compiler needed" in told[0] and "gloo" in told[0]
    assert not (tmp_path / "extensions").exists()
