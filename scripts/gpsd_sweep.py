"""Click models by transfer and size: does AUC fall after the first epoch, does freezing help, does size?

    python scripts/gpsd_sweep.py --data demo/data --out demo/gpsd --sizes 8x1,16x1,32x2,64x2 \
        --pretrain_config config/baselines/gpsd_small.yaml --click_config config/clicks/small.yaml

Pretrains every size, trains a click model for each transfer, and writes OUT/sweep.html with curves by epoch and a power
law by size, and SVG files beside it. Stopped and started again, it goes on where it was.
"""

import sys
from collections.abc import Sequence

from lsvcr.utils.arguments import parse_settings
from lsvcr.utils.errors import exit_code


def main(words: Sequence[str]) -> None:
    """Run the sweep and tell where its page is."""
    from lsvcr.experiments.clicks_sweep import SweepSettings, run

    example = "python scripts/gpsd_sweep.py --data demo/data --out demo/gpsd"
    about = "Train GPSD's click models of several sizes and transfers, and write one page about them."
    settings = parse_settings(SweepSettings, words, "scripts/gpsd_sweep.py", about, example)
    sys.stdout.write("".join(f"{path}\n" for path in run(settings)))


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
