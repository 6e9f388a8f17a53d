"""What tests ask about processes."""

from pathlib import Path


def alive(pid: int) -> bool:
    """Is it there, and no zombie that waits for its parent?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
