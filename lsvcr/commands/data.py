"""Raw logs, the prepared dataset, and what it is like."""

from lsvcr.commands.command import Command, print_report
from lsvcr.settings import DoctorSettings, ExportOfficialSettings, PrepareSettings, SimulateSettings
from lsvcr.utils.errors import UserError


def _simulate(settings: SimulateSettings) -> None:
    from lsvcr.data.simulation import simulate

    simulate(settings)


def _prepare(settings: PrepareSettings) -> None:
    from lsvcr.data.prepare import prepare

    prepare(settings)


def _doctor(settings: DoctorSettings) -> None:
    from lsvcr.experiments import doctor

    report = doctor.diagnose(settings)
    print_report(report, settings.json, doctor.print_report)
    sentence = doctor.failure(report)
    if sentence:
        raise UserError(sentence)


def _export_official(settings: ExportOfficialSettings) -> None:
    from lsvcr.data.export_official import export_official

    export_official(settings.data, settings.out, settings.max_history, settings.embeddings)


COMMANDS = {
    "simulate": Command(
        "Write the raw logs of a small video world whose truth is known.",
        "lsvcr simulate --preset tiny --out demo/raw",
        _simulate,
        SimulateSettings,
        needs=("out",),
    ),
    "prepare": Command(
        "Turn raw logs into a prepared dataset.",
        "lsvcr prepare kuaicomt --raw demo/raw --out demo/data",
        _prepare,
        PrepareSettings,
        places=("source",),
        needs=("raw", "out"),
    ),
    "doctor": Command(
        "Audit a prepared dataset: leaks, lengths, costs, and settings that fit it.",
        "lsvcr doctor demo/data --write_config ckpt/data-settings",
        _doctor,
        DoctorSettings,
        places=("data",),
        needs=("data",),
    ),
    "export-official": Command(
        "Write a prepared dataset in the reference implementation's format.",
        "lsvcr export-official demo/data --out demo/official",
        _export_official,
        ExportOfficialSettings,
        places=("data",),
        needs=("data", "out"),
    ),
}
