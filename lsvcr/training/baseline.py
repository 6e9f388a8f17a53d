"""`lsvcr train NAME`: any recommender of the registry through the loop, the checkpoints and the test of stage two."""

from typing import Any

from accelerate import Accelerator

from lsvcr.settings import FittedSettings
from lsvcr.training.baseline_setup import FittedSetup, TrainedSetup, set_up
from lsvcr.training.rank import run_setup, start_accelerator
from lsvcr.training.rank_evaluate import final_test, show
from lsvcr.training.rank_state import Progress, RunFolder
from lsvcr.utils.distributed import barrier, is_main
from lsvcr.utils.lock import run_lock


def run(name: str, settings: FittedSettings) -> dict[str, Any]:
    """Train or fit a recommender, keep the best checkpoint, test it once; an interrupted run goes on where it was.

    Args:
        name: of the registry.
        settings: of the class that the registry has for it.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: whatever the user can mend.
    """
    accelerator = start_accelerator()
    return run_built(accelerator, set_up(name, settings))


def run_built(accelerator: Accelerator, setup: FittedSetup) -> dict[str, Any]:
    """As `run`, for a recommender that is set up."""
    if isinstance(setup, TrainedSetup):
        return run_setup(accelerator, setup)
    return _fitted(accelerator, setup)


def _fitted(accelerator: Accelerator, setup: FittedSetup) -> dict[str, Any]:
    """Keep and test what has been fitted: always anew, for that is quick; but never in the place of another run."""
    # Fitting minds neither processes nor precision: with others of them it is the same run.
    folder = RunFolder(setup, 1, "no")
    with run_lock(folder.path):
        folder.find()
        barrier()
        if is_main():
            folder.clear()
            folder.save_best(setup.model, Progress(), {})
        barrier()
        setup.model.to(accelerator.device)
        report = final_test(setup, folder, accelerator.device)
    show(report)
    return report
