"""Start several processes as torchrun or `accelerate launch` do, and end in a sentence.

`python -m lsvcr.utils.launch torchrun ARGS` and `... accelerate ARGS` take the same arguments as the two
commands. Both answer any failed process with a page of traceback of their own; after an error that is the
user's, the processes have already said what to do, so here that page is left out. After any other failure it
stays.
"""

import logging
import sys
from collections.abc import Callable, Sequence

from lsvcr.utils.errors import INTERRUPTED_CODE, USER_ERROR_CODE

_LAUNCHERS = ("torchrun", "accelerate")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the launcher named by the first argument on the others.

    Returns:
        0; else the exit code of the first process that failed (accelerate with one process: 1); 130 after Ctrl-C.
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

    def launch() -> None:
        # Quiet: where it starts one process only, no traceback of its own either.
        command.launch_command(command.launch_command_parser().parse_args(["--quiet", *argv]))

    return _guarded(launch)


def _guarded(run: Callable[[], object]) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # The launcher's own log lines repeat what its report says.
    for name in ("run", "elastic", "elastic.multiprocessing.api", "elastic.agent.server.api"):
        logging.getLogger(f"torch.distributed.{name}").setLevel(logging.CRITICAL)
    try:
        run()
    except ChildFailedError as failed:
        _, first = failed.get_first_failure()
        if first.exitcode not in (USER_ERROR_CODE, INTERRUPTED_CODE):
            sys.stderr.write(f"{failed}\n")
        return int(first.exitcode) if first.exitcode > 0 else 1
    except (KeyboardInterrupt, SignalException):
        return INTERRUPTED_CODE
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else 1
    except ConnectionError as refused:
        sys.stderr.write(f"error: {refused}\n")
        return USER_ERROR_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main())
