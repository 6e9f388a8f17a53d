"""`--freeze`: parts of the stage-two model that keep the weights they start with."""

from torch import nn

from lsvcr.utils.arguments import nearest
from lsvcr.utils.errors import UserError
from lsvcr.utils.logging import get_logger

GROUPS = ("text", "id", "encoders")
"""What can be frozen; every parameter belongs to exactly one."""

_BEGINNINGS = {"text": ("head.", "sr.adapter."), "id": ("sr.video_id.", "sr.comment_id.", "sr.gate")}

logger = get_logger(__name__)


def frozen_groups(freeze: str) -> tuple[str, ...]:
    """The groups that a setting such as `text, encoders` names, in the order of `GROUPS`.

    Raises:
        UserError: a word is no group; the nearest is named.
    """
    words = freeze.replace(",", " ").split()
    for word in words:
        if word not in GROUPS:
            hint = nearest(word, GROUPS)
            raise UserError(
                f"--freeze takes {', '.join(GROUPS)}, separated by commas, not {word!r}{'; ' + hint if hint else ''}"
            )
    return tuple(group for group in GROUPS if group in words)


def group_of(name: str) -> str:
    """The group of a parameter of `RankModel`, by its name.

    text: embedding head and adapter. id: the id tables and the gate. encoders: all that makes a user vector of
    entries, from entry merge, positions and input norms to pooling and the CommRank attention.
    """
    for group, beginnings in _BEGINNINGS.items():
        if name.startswith(beginnings):
            return group
    return "encoders"


def freeze(model: nn.Module, groups: tuple[str, ...]) -> None:
    """Let the parameters of `groups` want no gradient. They then stay out of the optimiser, and weight decay too.

    Their dropout is that of the others: it perturbs what passes through, not the weights.

    Raises:
        UserError: nothing is left to train.
    """
    if not groups:
        return
    counts = {True: 0, False: 0}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(group_of(name) not in groups)
        counts[parameter.requires_grad] += parameter.numel()
    if not counts[True]:
        raise UserError(
            f"--freeze {','.join(groups)} leaves nothing to train in this model; leave out one of them"
        )
    logger.info(f"frozen ({', '.join(groups)}): {counts[False]:,} parameters; {counts[True]:,} are trained")
