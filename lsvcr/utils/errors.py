"""What a user can cause and mend is told in a sentence, without a traceback."""

import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

USER_ERROR_CODE = 2
INTERRUPTED_CODE = 130
"""128 + SIGINT, as shells report Ctrl-C."""
LOST_CODE = 69
"""Another process of the run has gone or hangs; 69 is what sysexits.h calls unavailable."""

_GONE = re.compile(
    r"Connection (closed|reset|refused)|closed by peer|Broken pipe|remote process exited|Socket closed|ncclRemoteError"
)
_LATE = re.compile(
    r"Timed out waiting|[Tt]imeout caused pair closure|ran for \d+ milliseconds before timing out"
)
_GONE_SECONDS = 10.0
"""What a process that lost another one waits for the launcher, which ends it once the other has spoken."""


class UserError(Exception):
    """Anything a user can cause: the message names file, line and remedy.

    The entries print it as it stands, so it is written for a person: what is wrong, where, what to do.
    """


def exit_code(run: Callable[..., Any], *args: Any) -> int:
    """Call `run(*args)` and turn how it ended into a process exit code; the frame of every entry.

    Returns:
        0; 2 after a `UserError`, whose message goes to stderr; 130 after Ctrl-C; 69 where another process of the run
        has gone or does not answer. Anything else is a defect of ours and keeps its traceback.
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
    except RuntimeError as error:  # torch's errors of connections are of this kind
        told = _of_another(error)
        if told is None:
            raise
        _tell(f"error: {told}\n")
        return LOST_CODE
    return 0


def _of_another(error: RuntimeError) -> str | None:
    """What a person is told where a connection broke or was silent for too long; None for any other error."""
    text = " ".join(str(error).split())
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    again = "Run the same command again, it goes on from the last checkpoint"
    if _LATE.search(text):
        return (
            f"another process has not answered for too long ({text[:200]}): it hangs, or its work takes longer than "
            f"--ddp_timeout allows. {again}"
        )
    if _GONE.search(text):
        # The one that ended knows why: it speaks first, and the launcher then ends this one.
        time.sleep(_GONE_SECONDS)
        return (
            f"the connection to another process broke ({text[:200]}): that one has ended, or the network has. Its own "
            f"message is above, or on its machine. {again}"
        )
    return None


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
