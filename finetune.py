r"""Stage two: fine-tune the SR model for one task.

    accelerate launch --config_file config/accelerate_config.yaml finetune.py --finetune_task Rec \
        --data_path ./data --pretrain_checkpoint ./ckpt/LSVCR --output_dir ./ckpt/finetune/Rec

`scripts/finetune.sh` calls this. `python finetune.py --help` lists every flag; `--config FILE.yaml` reads them from a
file, such as config/finetune/demo.yaml.
"""

import sys

from lsvcr.settings import RankSettings
from lsvcr.utils.arguments import parse_settings
from lsvcr.utils.errors import exit_code
from lsvcr.utils.logging import quiet_third_party


def main() -> None:
    """Parse the flags and run; heavy imports wait until they are right."""
    settings = parse_settings(
        RankSettings,
        sys.argv[1:],
        prog="finetune.py",
        description="Stage two: fine-tune the SR model for one task, Rec or CommRank.",
        example="accelerate launch --config_file config/accelerate_config.yaml finetune.py --finetune_task Rec",
    )
    quiet_third_party()
    from lsvcr.training.rank import run

    run(settings)


if __name__ == "__main__":
    sys.exit(exit_code(main))
