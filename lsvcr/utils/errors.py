"""What a user can cause and mend is told in a sentence, without a traceback."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

USER_ERROR_CODE = 2
INTERRUPTED_CODE = 130
"""128 + SIGINT, as shells report Ctrl-C."""


class UserError(Exception):
    """Anything a user can cause: the message names file, line and remedy.

    The entries print it as it stands, so it is written for a person: what is wrong, where, what to do.
    """


def exit_code(run: Callable[..., Any], *args: Any) -> int:
    """Call `run(*args)` and turn how it ended into a process exit code; the frame of every entry.

    Returns:
        0; 2 after a `UserError`, whose message goes to stderr; 130 after Ctrl-C. Anything else is a defect
        of ours and keeps its traceback.
    """
    try:
        run(*args)
    except UserError as error:
        _tell(f"error: {error}\n")
        return USER_ERROR_CODE
    except KeyboardInterrupt:
        if _rank() == "0":
            sys.stderr.write("\nstopped by Ctrl-C\n")
        return INTERRUPTED_CODE
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone: nothing is wrong. Python would complain once more
        # when it flushes stdout at exit, so stdout is pointed elsewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _tell(message: str) -> None:
    """Print once although every process of a run may have met the same error.

    The first process speaks at once. The launcher then ends the others while they wait; one that is still
    there after the wait met an error of its own and speaks too.
    """
    if _rank() != "0":
        time.sleep(2.0)
        message = f"process {_rank()}: {message}"
    sys.stderr.write(message)


def _rank() -> str:
    return os.environ.get("RANK", "0")
