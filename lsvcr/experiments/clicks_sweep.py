"""Every size and transfer of GPSD's click models, one after the other, and one page about them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lsvcr.baselines.gpsd_settings import ClickSettings, GpsdSettings
from lsvcr.experiments.clicks_report import (
    ClickRun,
    Group,
    by_size,
    curves,
    over_epochs,
    read_click_run,
    scaling_parts,
    scaling_svg,
    summary,
    write,
)
from lsvcr.experiments.report_axes import step_axis
from lsvcr.experiments.report_html import page, section, tag
from lsvcr.experiments.report_svg import svg_file
from lsvcr.settings import option
from lsvcr.utils.arguments import load_settings
from lsvcr.utils.errors import UserError

PAGE = "sweep.html"
SCALED = ("auc", "log_loss")
"""Figures that are drawn by size."""


@dataclass
class SweepSettings:
    """Settings of scripts/gpsd_sweep.py."""

    data: str = option("", "prepared dataset")
    out: str = option("", "folder of all runs and of the page; what is finished in it is used again")
    sizes: str = option("8x1,16x1,32x2,64x2", "hidden width x layers, with commas between")
    transfers: str = option("nt,ft,ft-sf", "of nt, ft, st, ft-sf, st-sf")
    seeds: str = option("2024", "with commas between; pretraining and click model of a seed belong together")
    heads: int = option(2, "attention heads of all sizes")
    pretrain_config: str = option("", "YAML file of `lsvcr train gpsd`")
    click_config: str = option("", "YAML file of `lsvcr clicks`")
    train: bool = option(True, "False: only write the page about what is there")


@dataclass(frozen=True)
class Job:
    """One click model and its pretraining.

    Attributes:
        size: its name, such as `32x2`.
        transfer: its name.
        pretraining: settings; the same for all transfers of a size and seed.
        clicks: settings.
    """

    size: str
    transfer: str
    pretraining: GpsdSettings
    clicks: ClickSettings

    @property
    def needs_pretraining(self) -> bool:
        """Does the transfer take anything from it?"""
        return bool(self.clicks.pretrained)


def jobs(settings: SweepSettings) -> list[Job]:
    """All of them, size by size, the transfers of a size together.

    Raises:
        UserError: a size, transfer or seed that is none, or a setting of a file.
    """
    from lsvcr.baselines.gpsd_clicks import TRANSFERS, transfer_name

    if not settings.data or not settings.out:
        raise UserError("give --data DIR, a prepared dataset, and --out DIR, a folder for the runs")
    pretrain = (
        load_settings(GpsdSettings, settings.pretrain_config) if settings.pretrain_config else GpsdSettings()
    )
    clicks = load_settings(ClickSettings, settings.click_config) if settings.click_config else ClickSettings()
    found = []
    for size in _words(settings.sizes):
        hidden, layers = _size(size)
        shape: dict[str, Any] = {
            "hidden": hidden,
            "layers": layers,
            "heads": settings.heads,
            "data_path": settings.data,
        }
        for seed in map(_seed, _words(settings.seeds)):
            folder = Path(settings.out) / size
            base = folder / f"pretrained-{seed}"
            common: dict[str, Any] = {**shape, "seed": seed, "report_to": "none"}
            own = replace(pretrain, output_dir=str(base), **common)
            for transfer in map(transfer_name, _words(settings.transfers)):
                where: dict[str, Any] = {
                    "output_dir": str(folder / f"{transfer}-{seed}"),
                    "pretrained": str(base) if TRANSFERS[transfer].load else "",
                }
                found.append(Job(size, transfer, own, replace(clicks, transfer=transfer, **where, **common)))
    if not found:
        raise UserError("--sizes, --transfers and --seeds must each name one or more")
    return found


def run(settings: SweepSettings) -> list[Path]:
    """Train what is not finished, and write the page after each model.

    An interrupted sweep goes on where it was: in the epoch of the model that it was at.

    Returns:
        The page and its pictures.

    Raises:
        UserError: whatever the user can mend.
    """
    planned = jobs(settings)
    if settings.train:
        from lsvcr.training import baseline, clicks

        for job in planned:
            # A finished run is only read, after its settings have been compared.
            if job.needs_pretraining:
                baseline.run("gpsd", job.pretraining)
            clicks.run(job.clicks)
            write_page(planned, settings)
    return write_page(planned, settings)


def write_page(planned: list[Job], settings: SweepSettings) -> list[Path]:
    """The page about what there is of the planned models, and its pictures as SVG files beside it.

    Raises:
        UserError: there is nothing yet, or runs are of different datasets.
    """
    groups = {size: group for size, group in _groups(planned) if group}
    if not groups:
        raise UserError(f"{settings.out} holds no run yet; let the sweep train with --train True")
    hashes = {run.data_hash for group in groups.values() for runs in group.values() for run in runs}
    if len(hashes) > 1:
        raise UserError(f"{settings.out} holds runs of different datasets; give another --out")
    scalings = [by_size(groups, metric) for metric in SCALED]
    body = [tag("h1", "Click models by transfer and size"), section("By size", *scaling_parts(scalings))]
    for number, (size, group) in enumerate(groups.items()):
        hidden, layers = _size(size)
        name = f"Width {hidden}, {layers} layer{'s' if layers > 1 else ''}"
        body.append(section(name, summary(group), *curves(group, f"curves-{number}")))
    out = Path(settings.out)
    written = [write(out / PAGE, page("Click models by transfer and size", *body))]
    for size, group in groups.items():
        chart = over_epochs(group, "test/auc")
        last = step_axis(max(chart.steps, default=1))
        written.append(write(out / f"auc-{size}.svg", svg_file(chart, last, "epoch")))
    for metric, scaling in zip(SCALED, scalings, strict=True):
        if scaling.points:
            written.append(write(out / f"size-{metric}.svg", scaling_svg(scaling)))
    return written


def _groups(planned: list[Job]) -> Iterator[tuple[str, Group]]:
    """Runs with an epoch or more, by size and transfer."""
    for size in dict.fromkeys(job.size for job in planned):
        group: dict[str, list[ClickRun]] = {}
        for job in planned:
            folder = Path(job.clicks.output_dir)
            if job.size == size and (folder / "last").is_dir():
                group.setdefault(job.transfer.upper().replace("-", "&"), []).append(read_click_run(folder))
        yield size, group


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(text.replace(",", " ").split()))


def _size(text: str) -> tuple[int, int]:
    width, _, layers = text.partition("x")
    if not (width.isascii() and width.isdigit() and layers.isascii() and layers.isdigit()):
        raise UserError(f"--sizes: {text!r} does not have the form WIDTHxLAYERS, as in 32x2")
    return int(width), int(layers)


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"--seeds: {text!r} is no whole number from 0")
    return int(text)
