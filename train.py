"""Stage one: align the SR model with an LLM (LoRA, DeepSpeed ZeRO-2).

    torchrun --nproc_per_node=2 train.py --data_path ./data --output_dir ./ckpt/LSVCR

`scripts/run_lora.sh` calls this and writes the text vectors afterwards. `python train.py --help` lists every flag;
`--config FILE.yaml` reads them from a file, such as config/align/demo.yaml.
"""

import sys

from lsvcr.settings import AlignSettings
from lsvcr.utils.arguments import parse_settings
from lsvcr.utils.errors import exit_code
from lsvcr.utils.logging import quiet_third_party


def main() -> None:
    """Parse the flags and run; heavy imports wait until they are right."""
    settings = parse_settings(
        AlignSettings,
        sys.argv[1:],
        prog="train.py",
        description="Stage one: align the SR model with an LLM.",
        example="torchrun --nproc_per_node=2 train.py --data_path ./data --output_dir ./ckpt/LSVCR",
    )
    quiet_third_party()
    from lsvcr.training.align import align

    align(settings)


if __name__ == "__main__":
    sys.exit(exit_code(main))
