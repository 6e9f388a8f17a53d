"""What stage two takes over from stage one: a run folder of ours or an official checkpoint, strictly, with a report."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lsvcr.models import checkpoint
from lsvcr.models.official import FILES as OFFICIAL_FILES
from lsvcr.models.official import official_file, read_official
from lsvcr.models.rank import RankModel
from lsvcr.schema import BEST_DIR, MANIFEST_FILE, SR_WEIGHTS_FILE, STAGE_ONE
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import sha256_file
from lsvcr.utils.logging import get_logger

SR_PREFIX, HEAD_PREFIX = "sr.", "head."
"""Where a stage-one folder and `RankModel` both keep SR model and embedding head."""

_NEW_IN_STAGE_TWO = ("video_id.*", "comment_id.*", "gate")

logger = get_logger(__name__)


@dataclass(frozen=True)
class StageOne:
    """Weights of stage one.

    Attributes:
        folder: where they lie; text vectors are looked for there too.
        file: its SHA-256 names the weights: the manifest of a folder of ours, or the official checkpoint itself.
        tensors: `sr.*`, `head.*` and `contrast.*`, by our names.
        names: the official name of each of them; empty for a folder of ours.
        lora: matrices of the LLM's adapter in an official checkpoint, which stage two has no use for.
    """

    folder: Path
    file: Path
    tensors: dict[str, Tensor]
    names: dict[str, str] = field(default_factory=dict)
    lora: int = 0

    @property
    def official(self) -> bool:
        """Is it a checkpoint of the official implementation?"""
        return bool(self.names)

    @property
    def source(self) -> str:
        """How messages call it."""
        return (
            f"the official checkpoint {self.file}"
            if self.official
            else f"the stage-one checkpoint {self.folder}"
        )

    @property
    def sha256(self) -> str:
        """Hash that names the weights' run."""
        return sha256_file(self.file)

    @property
    def position_rows(self) -> int:
        """Rows of its longer position table."""
        tables = (t for n, t in self.tensors.items() if n.endswith(checkpoint.POSITION_TABLES))
        return max(map(len, tables), default=0)


@dataclass(frozen=True)
class Handover:
    """Which tensors went where.

    Attributes:
        taken: by our names, each with its name in the checkpoint.
        left: tensors that stage two has no place for, by their names in the checkpoint.
        new: parameters of stage two that keep their fresh values.
        lengthened: position tables that were continued, with rows before and after.
        lora: adapter matrices left behind besides.
    """

    taken: dict[str, str]
    left: list[str]
    new: list[str]
    lengthened: dict[str, list[int]]
    lora: int


def find_stage_one(path: str) -> StageOne | None:
    """Read the stage-one weights that `path` names; None for `none`.

    Args:
        path: a run folder of ours, its best/, a file in it; or an official checkpoint, or its folder. The name of
            an official file that is not there stands for its folder: that is how the reference's commands name a run.

    Raises:
        UserError: there are none, they cannot be read, or are of another kind of run.
    """
    if path.lower() in ("none", ""):
        return None
    given = Path(path)
    start = given.parent if given.is_file() or given.name in OFFICIAL_FILES else given
    ours = [folder for folder in (start, start / BEST_DIR) if (folder / SR_WEIGHTS_FILE).is_file()]
    if given.is_file() and (given.name in OFFICIAL_FILES or not ours):
        return _official(given)
    if ours:
        return _ours(ours[0])
    if any((start / name).is_file() for name in OFFICIAL_FILES):
        return _official(official_file(start))
    raise UserError(
        f"--pretrain_checkpoint {path}: no {SR_WEIGHTS_FILE} there or in its {BEST_DIR}/, and no official "
        f"{OFFICIAL_FILES[0]}; give the output folder of a finished stage one (scripts/run_lora.sh), or none to train "
        "without it"
    )


def _ours(folder: Path) -> StageOne:
    weights = checkpoint.load(folder)
    kind = weights.manifest.get("kind")
    if kind != STAGE_ONE:
        raise UserError(
            f"--pretrain_checkpoint: {folder} holds a {kind} checkpoint, not one of stage one; give the output folder "
            "of a finished stage one (scripts/run_lora.sh), or none to train without it"
        )
    return StageOne(folder, folder / MANIFEST_FILE, weights.tensors)


def _official(file: Path) -> StageOne:
    found = read_official(file)
    if not any(name.startswith(SR_PREFIX) for name in found.heads):
        raise UserError(
            f"{file} holds an adapter of an LLM and no SR model, so stage two has nothing to take from it; give the "
            "stage-one run folder, or an official adapter_model.bin"
        )
    return StageOne(file.parent, file, found.heads, found.names, len(found.lora))


def hand_over(model: RankModel, stage_one: StageOne) -> Handover:
    """Copy SR model and, where it trains on, embedding head; all that stage two does not add must be there.

    Position tables that are shorter than the model's are continued by the mean of their rows.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape; each is listed.
    """
    given, sr = stage_one.tensors, model.sr
    held = stage_one.names or {name: name for name in given}
    own = checkpoint.under_prefix(SR_PREFIX, given)
    full = checkpoint.extend_positions(own, sr.max_position)
    unused = () if sr.adapter is not None else ("adapter.*",)
    new = checkpoint.load_into(
        sr, full, source=stage_one.source, may_miss=_NEW_IN_STAGE_TWO, may_ignore=unused
    )
    places = set(checkpoint.with_prefix(SR_PREFIX, sr.state_dict()))
    if model.head is not None:
        head = checkpoint.under_prefix(HEAD_PREFIX, given)
        checkpoint.load_into(model.head, head, source=f"{stage_one.source} (embedding head)")
        places |= set(checkpoint.with_prefix(HEAD_PREFIX, head))
    report = Handover(
        taken={name: held[name] for name in sorted(held) if name in places},
        left=sorted(theirs for ours, theirs in held.items() if ours not in places),
        new=[SR_PREFIX + name for name in new],
        lengthened={
            SR_PREFIX + name: [len(own[name]), len(full[name])]
            for name in own
            if len(own[name]) != len(full[name])
        },
        lora=stage_one.lora,
    )
    for line in told(report, stage_one.source):
        logger.info(line)
    return report


def told(report: Handover, source: str) -> list[str]:
    """The report in a few lines, tensors gathered by module."""
    left = _modules({name: name for name in report.left})
    if report.lora:
        left.append(f"the LLM's LoRA ({report.lora})")
    lines = [f"from {source}: {len(report.taken)} tensors taken: {', '.join(_modules(report.taken))}"]
    lines += [
        f"{name}: {before} rows there, continued to {after} by their mean"
        for name, (before, after) in report.lengthened.items()
    ]
    lines.append(f"left behind: {', '.join(left) or 'nothing'}; new: {', '.join(report.new) or 'nothing'}")
    return lines


def _modules(names: Mapping[str, str]) -> list[str]:
    """`sr.merge (2)`, or `sr.merge from reccom.pc_merge (2)` where the checkpoint calls it otherwise."""
    pairs: Iterable[tuple[str, str]] = ((_module(ours), _module(theirs)) for ours, theirs in names.items())
    return [
        f"{ours} ({count})" if ours == theirs else f"{ours} from {theirs} ({count})"
        for (ours, theirs), count in Counter(pairs).items()
    ]


def _module(name: str) -> str:
    """The first two parts of a tensor's name: `sr.merge.weight` -> `sr.merge`."""
    return ".".join(name.split(".")[:2])


def recorded(stage_one: StageOne, report: Handover | None) -> dict[str, Any]:
    """What a stage-two manifest says of its stage one."""
    path = stage_one.file if stage_one.official else stage_one.folder
    tensors = None if report is None else vars(report)
    return {"path": str(path), "manifest": stage_one.sha256, "tensors": tensors}
