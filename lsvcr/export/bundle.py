"""`lsvcr export`: checkpoints and their dataset into a bundle, asked before it is put in place."""

import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from lsvcr import __version__
from lsvcr.data.store import Dataset, open_dataset
from lsvcr.export.catalogue import comment_table, user_table, video_table
from lsvcr.export.encoder import encoder_graph
from lsvcr.export.models import exporter
from lsvcr.export.parts import Source, open_sources
from lsvcr.export.quantise import quantised
from lsvcr.export.tables import tables, tower_graph
from lsvcr.export.text_fit import fit_text_encoder
from lsvcr.export.verify import verify
from lsvcr.schema import MANIFEST_FILE, Split, Task
from lsvcr.serving.bundle import amend_manifest, write_bundle
from lsvcr.serving.bundle_write import BUNDLE_KIND, Part
from lsvcr.serving.rows import Score
from lsvcr.serving.runtime import Recommender
from lsvcr.settings import ExportSettings
from lsvcr.training.baseline_setup import FittedSetup
from lsvcr.training.rank_setup import Setup
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import atomic_dir, check_replaceable, read_json, sha256_file
from lsvcr.utils.logging import get_logger

logger = get_logger(__name__)

ENCODER_FILE = "encoder.onnx"
_RECALL_USERS = 1000
_OF: dict[Score, str] = {"cosine": "", "inner product": " of the largest possible"}
"""What a difference of scores is told in."""


def export(settings: ExportSettings) -> dict[str, Any]:
    """Write a bundle of one or two checkpoints, whole or not at all.

    It is written beside its place, asked about the test split, and moved there if it answers as the checkpoints do.

    Returns:
        Its manifest.

    Raises:
        UserError: checkpoints or dataset that cannot be exported, a bundle that answers otherwise, or a place that
            cannot be written to or holds something else.
    """
    settings = _checked(settings)
    dataset = open_dataset(settings.data)
    sources = open_sources([name for name in (settings.checkpoint, settings.other) if name], dataset)
    with atomic_dir(settings.out) as place:
        # The place is locked and emptied by whoever comes next, if this process is killed: so is all in it.
        inner = place / "bundle"
        _write(inner, settings, dataset, sources)
        logger.info("asking the bundle about the test split")
        found = verify(Recommender.load(inner), sources, settings.verify_rows, settings.rows)
        if settings.quantize == "int8":
            _quantise(inner, sources)
            logger.info("asking it again, the encoder in 8 bits")
            found = verify(Recommender.load(inner), sources, settings.verify_rows, settings.rows, exact=False)
        amend_manifest(inner, verified=found, quantisation=_losses(found, settings))
        for path in list(inner.iterdir()):
            path.rename(place / path.name)
        inner.rmdir()
    return dict(read_json(Path(settings.out) / MANIFEST_FILE))


def summary(manifest: Mapping[str, Any], out: str) -> str:
    """What a person is told of a bundle that was written: lines of text."""
    counts = manifest["counts"]
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    users = f", {counts['users']:,} users" if counts["users"] else ""
    lines = [
        f"{out}: {counts['videos']:,} videos, {counts['comments']:,} comments{users}; {size / 1e6:,.1f} MB, "
        f"rows of {manifest['rows']}"
    ]
    for name, found in manifest["verified"].items():
        metrics = ", ".join(
            f"{metric.upper()} {values['bundle']:.4f} ({values['checkpoint']:.4f} in the checkpoint)"
            for metric, values in found["metrics"].items()
        )
        lines.append(
            f"{Task(name).label}: asked about {found['rows']:,} {found['split']} samples: scores differ by at most "
            f"{found['max_difference']:.1e}{_OF[manifest['parts'][name]['score']]}, "
            f"{found['overlap@10']:.2%} of the first ten are the same; {metrics}"
        )
    if manifest["index"]["kind"] != "exact":
        lines.append(
            f"approximate index: finds {manifest['index']['recall@10']:.2%} of the exact ten best videos"
        )
    encoder = manifest["text_encoder"]
    if encoder:
        held = encoder["held_out"]
        lines.append(
            f"text encoder: on {held['texts']:,} texts it had not seen, cosine {held['cosine']:.3f} "
            f"(centred {held['centred_cosine']:.3f}), {held['neighbours@10']:.0%} of the ten nearest texts the same"
        )
    return "\n".join(lines) + "\n"


def _checked(settings: ExportSettings) -> ExportSettings:
    """The settings, `rows` being what `quantize` asks for.

    Raises:
        UserError: settings that cannot work together, or a place that holds no bundle.
    """
    for flag in ("verify_rows", "ann_from"):
        if getattr(settings, flag) < 0:
            raise UserError(f"--{flag} {getattr(settings, flag)} must be 0 or more")
    if settings.quantize == "int8":
        if settings.rows == "float16":
            raise UserError("--quantize int8 stores rows as int8: drop --rows float16, or --quantize")
        settings = replace(settings, rows="int8")
    out = Path(settings.out)
    own: list[str] = []
    if (out / MANIFEST_FILE).is_file():
        manifest = read_json(out / MANIFEST_FILE)
        if isinstance(manifest, dict) and manifest.get("kind") == BUNDLE_KIND:
            own = [MANIFEST_FILE, *manifest.get("files", ())]
    check_replaceable(out, "a bundle", own)
    return settings


def _write(folder: Path, settings: ExportSettings, dataset: Dataset, sources: Mapping[Task, Source]) -> None:
    """Write everything but what the bundle's own answers tell."""
    lengths = {name: length for s in sources.values() for name, (_, length) in s.lengths.items()}
    max_videos, max_entries = lengths["videos"], lengths.get("entries", 0)
    texts = next((s.texts for s in sources.values() if s.texts is not None), None)
    fitted = None
    if settings.text_encoder:
        if texts is None:
            raise UserError(
                "--text_encoder: these models have no text (--disable_text, or video ids alone); leave it away"
            )
        fitted = fit_text_encoder(dataset, texts)
    about = {
        "versions": _versions(),
        "parents": {task.value: source.about() for task, source in sources.items()},
        "data_hash": dataset.data_hash,
        "texts": None if texts is None else {name: entry["sha256"] for name, entry in texts.about.items()},
        "text_encoder": None if fitted is None else fitted.about,
        "quantisation": None,
        "verified": None,
    }
    write_bundle(
        folder,
        videos=video_table(dataset),
        comments=comment_table(dataset),
        parts={task: make_part(source) for task, source in sources.items()},
        text_width=0 if texts is None else texts.width,
        max_videos=max_videos,
        max_entries=max_entries,
        users=user_table(dataset, max_videos, max_entries) if settings.with_users else None,
        rows=settings.rows,
        ann_from=settings.ann_from,
        sample_users=_some_users(sources, dataset, settings.ann_from),
        about=about,
        files={} if fitted is None else fitted.files,
    )


def make_part(source: Source) -> Part:
    """Graphs and tables of one checkpoint."""
    setup = source.setup
    if isinstance(setup, FittedSetup):
        return exporter(setup.entry, source.folder)(setup.model)
    assert isinstance(setup, Setup), "the two kinds of checkpoints"
    model, settings = setup.model, setup.settings
    made = tables(model)
    return Part(
        encoder=encoder_graph(model, settings.max_phis_len, settings.max_chis_len),
        items=made.items,
        entries=made.entries,
        shown=made.shown,
        watched=made.watched,
        tower=None if setup.texts is None else tower_graph(model, setup.texts.width),
        about={
            "encoder": "float32",
            "ids": not settings.disable_id,
            "texts": not settings.disable_text,
            "comments": not settings.disable_comments,
        },
    )


@torch.no_grad()
def _some_users(sources: Mapping[Task, Source], dataset: Dataset, ann_from: int) -> np.ndarray | None:
    """User vectors that the recall of an approximate index is measured with; None where there is to be none."""
    if Task.REC not in sources or not 0 < ann_from < dataset.n_videos:
        return None
    setup = sources[Task.REC].setup
    data = setup.data(Split.TEST)
    rows = np.random.default_rng(0).permutation(len(data))[:_RECALL_USERS]
    return setup.model.user_vectors(data.evaluation(np.sort(rows))).numpy() if len(rows) else None


def _quantise(folder: Path, sources: Mapping[Task, Source]) -> None:
    """Put encoders of 8 bits in the place of those that a bundle was verified with."""
    manifest = read_json(folder / MANIFEST_FILE)
    for task in sources:
        name = f"{task.value}/{ENCODER_FILE}"
        graph = quantised((folder / name).read_bytes())
        (folder / name).write_bytes(graph)
        manifest["files"][name] = {"bytes": len(graph), "sha256": sha256_file(folder / name)}
        manifest["parts"][task.value]["encoder"] = "int8"
    amend_manifest(folder, files=manifest["files"], parts=manifest["parts"])


def _losses(found: Mapping[str, Any], settings: ExportSettings) -> dict[str, Any] | None:
    """The manifest's entry `quantisation`: what rounding costs; None where nothing is rounded."""
    if settings.rows == "float32":
        return None
    losses = {
        name: {
            "overlap@10": own["overlap@10"],
            **{f"{metric} loss": values["loss"] for metric, values in own["metrics"].items()},
        }
        for name, own in found.items()
    }
    encoder = "int8" if settings.quantize == "int8" else "float32"
    return {"rows": settings.rows, "encoder": encoder, **losses}


def _versions() -> dict[str, str]:
    return {
        "lsvcr": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
