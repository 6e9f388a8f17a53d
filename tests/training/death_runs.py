"""train.py in which process 1 comes to grief before its second step, for `test_align_death.py`.

torchrun ... tests/training/death_runs.py {kill,raise,refuse,hang} [FLAGS of train.py]
"""

import os
import signal
import sys
import time
from typing import Any

import train
from lsvcr.training.align import AlignTrainer
from lsvcr.utils.errors import UserError, exit_code

GRIEF = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda: time.sleep(600),
}


def main() -> None:
    """What train.py does, but for the one step."""
    kind = sys.argv.pop(1)
    real = AlignTrainer._step

    def step(self: Any, number: int, *rest: Any) -> None:
        if number == 1 and os.environ["RANK"] == "1":
            if kind == "raise":
                raise ArithmeticError("a defect of ours")
            if kind == "refuse":
                raise UserError("what a user can mend")
            GRIEF[kind]()
        real(self, number, *rest)

    AlignTrainer._step = step  # type: ignore[method-assign]
    train.main()


if __name__ == "__main__":
    sys.exit(exit_code(main))
