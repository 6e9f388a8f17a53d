"""A comparison's worker whose HLLM dies before its fourth step: `python -m tests.experiments.dying_worker JOB`."""

import sys

from lsvcr.experiments import compare_worker
from tests.training.hllm_runs import stop_before

if __name__ == "__main__":
    stop_before(3)
    compare_worker.main(sys.argv[1:])
