"""Start several processes as torchrun or `accelerate launch` do, and end in a sentence.

`python -m lsvcr.utils.launch torchrun ARGS` and `... accelerate ARGS` take the same arguments as the two
commands. Both answer any failed process with a page of traceback of their own. Here it is one sentence, which names
the process that failed first and how; after an error that is the user's, the process itself has already said what
to do, and nothing is added.
"""

import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lsvcr.utils.errors import INTERRUPTED_CODE, LOST_CODE, USER_ERROR_CODE

_LAUNCHERS = ("torchrun", "accelerate")
_TOLD = (USER_ERROR_CODE, INTERRUPTED_CODE, LOST_CODE)
"""Exit codes of processes that have said themselves why they end."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the launcher named by the first argument on the others.

    Returns:
        0; else the exit code of the first process that failed, 128 + signal if one ended it; 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in _LAUNCHERS:
        sys.stderr.write(f"usage: python -m lsvcr.utils.launch {{{'|'.join(_LAUNCHERS)}}} ARGS\n")
        return USER_ERROR_CODE
    return _torchrun(words[1:]) if words[0] == "torchrun" else _accelerate(words[1:])


def _torchrun(argv: Sequence[str]) -> int:
    from torch.distributed.run import parse_args, run

    return _guarded(lambda: run(parse_args(list(argv))))


def _accelerate(argv: Sequence[str]) -> int:
    import accelerate.commands.launch as command

    return _guarded(lambda: command.launch_command(command.launch_command_parser().parse_args(list(argv))))


def _guarded(run: Callable[[], object]) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # The launcher's own log lines repeat what its report says.
    for name in ("run", "elastic", "elastic.multiprocessing.api", "elastic.agent.server.api"):
        logging.getLogger(f"torch.distributed.{name}").setLevel(logging.CRITICAL)
    try:
        run()
    except ChildFailedError as failed:
        rank, first = _cause(failed.failures)
        if first.exitcode not in _TOLD:
            sys.stderr.write(f"error: {_ending(rank, first)}; the other processes were stopped\n")
        return _as_shells_say(first.exitcode)
    except subprocess.CalledProcessError as failed:  # accelerate, where it starts one process only
        return _as_shells_say(failed.returncode)
    except (KeyboardInterrupt, SignalException):
        return INTERRUPTED_CODE
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else 1
    except ConnectionError as refused:
        sys.stderr.write(f"error: {refused}\n")
        return USER_ERROR_CODE
    return 0


def _cause(failures: Mapping[int, Any]) -> tuple[int, Any]:
    """Rank and failure of the process that the others fell with.

    Times are whole seconds, so what a process ended with says more: the launcher ends the others with SIGTERM, and
    who lost a connection lost it to another.
    """

    def order(entry: tuple[int, Any]) -> tuple[int, int, int]:
        rank, failure = entry
        followers = {-signal.SIGTERM: 3, LOST_CODE: 2}
        return followers.get(failure.exitcode, 0 if failure.exitcode < 0 else 1), failure.timestamp, rank

    return min(failures.items(), key=order)


def _ending(rank: int, failure: Any) -> str:
    """How a process ended, and what to do, as a person reads it."""
    if failure.exitcode > 0:
        return f"process {rank} failed with exit code {failure.exitcode}, see its traceback above"
    memory = ""
    if failure.exitcode == -signal.SIGKILL:
        memory = "; where nobody did that, the system was out of memory (`dmesg` says so)"
    return (
        f"process {rank} was ended by signal {-failure.exitcode} ({failure.signal_name()}){memory}. Run the same "
        "command again, it goes on from the last checkpoint"
    )


def _as_shells_say(code: int) -> int:
    """Python counts processes that a signal ended downwards from 0, a shell upwards from 128."""
    return code if code > 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
