"""`lsvcr prepare`: raw logs of any source to the prepared dataset that everything else reads.

Events are positive ones only, sorted by (time, input row); a user's repeated like of a video counts once, at
its first time, and so does a repeated touch of a comment. Ids become 1, 2, ... in the order of the raw ids,
so that the result depends on the rows alone, not on threads or chunks.
"""

import platform
import shutil
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from lsvcr import __version__, schema
from lsvcr.data.assemble import Prepared, assemble
from lsvcr.data.impressions import write_impressions
from lsvcr.data.sources import OFFICIAL, SOURCES, read_logs
from lsvcr.data.sources.logs import BadRows
from lsvcr.data.sources.official import read as read_official
from lsvcr.data.sources.spill import Spill
from lsvcr.data.store import DATASET_KIND, is_dataset
from lsvcr.settings import PrepareSettings
from lsvcr.settings.bounds import check_bounds
from lsvcr.utils.errors import UserError
from lsvcr.utils.io import atomic_dir, check_replaceable, read_json, sha256_file, sha256_text, write_json
from lsvcr.utils.logging import get_logger

_ROW_GROUP = 65_536
"""Rows of a parquet row group; fixed, so that the files' hashes are the same on every machine."""

_SPILL = ".spill"
"""Impressions wait here, inside the unfinished dataset, and go before it is complete."""

_COMPANIONS = (
    schema.VIDEO_EMBEDDINGS_FILE,
    schema.COMMENT_EMBEDDINGS_FILE,
    schema.VIDEO_FULL_EMBEDDINGS_FILE,
    schema.COMMENT_FULL_EMBEDDINGS_FILE,
    schema.ITEM_EMBEDDINGS_FILE,
    schema.VIDEO_KEYS_FILE,
    schema.COMMENT_KEYS_FILE,
    schema.ITEM_KEYS_FILE,
    schema.EMBEDDINGS_MANIFEST_FILE,
    f"{schema.EMBED_WORK_DIR}/",
)
"""What `lsvcr embed` writes beside a dataset: of no use to another one, so it goes with the one that is replaced."""

_log = get_logger(__name__)


def prepare(settings: PrepareSettings) -> Path:
    """Turn raw files into a prepared dataset at `settings.out`, replacing one that is there.

    The folder appears when it is complete; a stopped run leaves the old one or none.

    Returns:
        The folder.

    Raises:
        UserError: a setting, file or row is wrong (with file, line and remedy), or nothing is left to split.
    """
    out = _check(settings)
    bad = BadRows(settings.skip_bad_rows)
    with atomic_dir(out) as folder:
        spill = Spill(folder / _SPILL)
        if settings.source == OFFICIAL:
            prepared = read_official(settings, bad)
        else:
            # Raw frames are handed over without a name here: kept until the end, they would be half of the memory.
            prepared = assemble(read_logs(settings, bad, spill), settings, bad)
        _write(folder, prepared, spill)
        _describe(folder, prepared, settings, bad)
    _report(out, prepared, bad)
    return out


def _check(settings: PrepareSettings) -> Path:
    if settings.source not in SOURCES:
        raise UserError(f"--source {settings.source!r} is unknown; choose from {', '.join(SOURCES)}")
    if not settings.raw or not settings.out:
        raise UserError("prepare needs --raw (folder with the raw files) and --out (folder to write)")
    if not Path(settings.raw).is_dir():
        raise UserError(f"--raw {settings.raw} is not a folder; give the one that holds the raw files")
    out = Path(settings.out)
    check_replaceable(out, "a prepared dataset", _own_files(out))
    if not 0 < settings.val_share < 1 or not 0 < settings.test_share < 1 - settings.val_share:
        raise UserError("--val_share and --test_share must be above 0 and together below 1")
    if settings.candidates < 2:
        raise UserError("--candidates must be at least 2: a positive and a negative")
    check_bounds(settings)
    return out


def _own_files(out: Path) -> list[str]:
    """The files of the prepared dataset at `out` and what belongs to it; none where there is no dataset."""
    if not is_dataset(out):
        return []
    return [*read_json(out / schema.MANIFEST_FILE).get("files", ()), schema.MANIFEST_FILE, *_COMPANIONS]


def _write(folder: Path, prepared: Prepared, spill: Spill) -> None:
    """Tables, arrays and impressions; the figures of the impressions join the counts."""
    for name, table in prepared.tables.items():
        table.write_parquet(folder / name, compression="zstd", row_group_size=_ROW_GROUP)
    for name, array in prepared.arrays.items():
        path = folder / f"{name}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.ascontiguousarray(array))
    if spill:
        users, videos = (prepared.tables[name] for name in (schema.USERS_FILE, schema.VIDEOS_FILE))
        prepared.counts["impressions"] = write_impressions(spill, users, videos, folder)
        shutil.rmtree(folder / _SPILL)


def _describe(folder: Path, prepared: Prepared, settings: PrepareSettings, bad: BadRows) -> None:
    """The manifest, with the hash of every file that is there."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    options = asdict(settings)
    del options["out"]
    split = "as given" if settings.source == OFFICIAL else settings.split
    manifest: dict[str, Any] = {
        "kind": DATASET_KIND,
        "format": schema.FORMAT_VERSION,
        "data_hash": sha256_text("".join(f"{name} {entry['sha256']}\n" for name, entry in files.items())),
        "source": settings.source,
        "options": options,
        "split": {"name": split, "cut_times": asdict(prepared.cuts) if prepared.cuts else None},
        "counts": prepared.counts,
        "skipped_rows": bad.summary(),
        "versions": {"lsvcr": __version__, "python": platform.python_version()}
        | {name: _version(name) for name in ("polars", "numpy")},
        "files": files,
    }
    write_json(folder / schema.MANIFEST_FILE, manifest)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _report(out: Path, prepared: Prepared, bad: BadRows) -> None:
    counts: dict[str, Any] = prepared.counts
    for name, entry in bad.summary().items():
        _log.warning(
            "%s: left out %s broken rows, the first: %s", name, f"{entry['rows']:,}", entry["first"][0]
        )
    _log.info(
        "%s: %s users, %s videos (%s cold), %s comments, %s likes, %s comment interactions",
        out,
        *(
            f"{counts[name]:,}"
            for name in ("users", "videos", "cold_videos", "comments", "video_events", "comment_events")
        ),
    )
    if "impressions" in counts:
        _log.info(
            "%s impressions, %s clicked; %s of users or videos outside the dataset left out",
            *(f"{counts['impressions'][name]:,}" for name in ("rows", "clicked", "left_out")),
        )
    for task, sizes in counts["samples"].items():
        _log.info("%s samples: %s", task, ", ".join(f"{size:,} {split}" for split, size in sizes.items()))
    if not counts["samples"]["comm_rank"]["test"]:
        _log.warning("no comment interaction can be tested: this dataset serves the task Rec alone")
