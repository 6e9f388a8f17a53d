"""The environment that peers.py makes for the other systems: one for all, with the versions of peers_constraints.txt.

Nothing is installed into our own. Before anything is fetched, pip is asked what torch would bring along: GPU libraries
are gigabytes that nothing here uses, so that a package index without a CPU build of torch is a reason not to go on.
"""

import json
import subprocess
import sys
from pathlib import Path

from common import tell

CONSTRAINTS = Path(__file__).with_name("peers_constraints.txt")
INSTALLS = {
    "rectools": ["RecTools[torch]"],
    "replay": ["replay-rec[torch]"],
    "rechub": ["torch-rechub"],
    "recbole": ["recbole"],
}
"""What pip is asked for, by the names that peers.py has for the systems."""

_FIRST = ["torch", "numpy", "setuptools"]


class Environment:
    """A virtual environment in a folder; what is installed in it is not installed again.

    Args:
        folder: made when it is first needed.
        cuda: GPU libraries may be fetched.
    """

    def __init__(self, folder: Path, cuda: bool) -> None:
        self._folder, self._cuda = folder, cuda
        self.python = folder / "bin" / "python"

    def add(self, peer: str) -> str:
        """Install a system. Returns nothing, or the reason why it is not there."""
        done = self._folder / f"{peer}-installed"
        if done.is_file() and done.read_bytes() == CONSTRAINTS.read_bytes():
            return ""
        reason = self._make() or self._install(INSTALLS[peer])
        if not reason:
            done.write_bytes(CONSTRAINTS.read_bytes())
        return reason

    def site_packages(self) -> Path:
        """Where its packages lie."""
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        return Path(subprocess.check_output([str(self.python), "-c", code], text=True).strip())

    def _make(self) -> str:
        if not self.python.exists():
            tell(f"making {self._folder} ...")
            made = subprocess.run(
                [sys.executable, "-m", "venv", str(self._folder)], capture_output=True, text=True
            )
            if made.returncode:
                return f"no environment could be made: {_last_line(made.stderr or made.stdout)}"
        return self._gpu_libraries() or self._install(_FIRST)

    def _gpu_libraries(self) -> str:
        if self._cuda:
            return ""
        asked = self._pip("--dry-run", "--quiet", "--report", "-", *_FIRST)
        if asked.returncode:
            return f"pip finds no torch: {_last_line(asked.stderr)}"
        names = [entry["metadata"]["name"] for entry in json.loads(asked.stdout)["install"]]
        extra = [name for name in names if name.startswith(("nvidia", "cuda", "triton"))]
        if not extra:
            return ""
        return (
            f"torch would bring {len(extra)} GPU packages along; tell pip where a CPU build is "
            "(PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS), or give --cuda"
        )

    def _install(self, names: list[str]) -> str:
        tell(f"installing {' '.join(names)} ...")
        done = self._pip("--quiet", *names)
        return (
            f"pip could not install {' '.join(names)}: {_last_line(done.stderr)}" if done.returncode else ""
        )

    def _pip(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [str(self.python), "-m", "pip", "install", "-c", str(CONSTRAINTS), *words]
        return subprocess.run(command, capture_output=True, text=True)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("ERROR")] or text.splitlines()
    return lines[-1].removeprefix("ERROR: ") if lines else "no message"
