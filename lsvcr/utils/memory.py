"""How much memory this process has taken."""

import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """The largest resident memory of this process since it began to run its program, in bytes.

    Linux tells it in a file; what it tells of ended children, and elsewhere of a process itself, counts the memory of
    the process that started it too, if that was larger.
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else []:
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
