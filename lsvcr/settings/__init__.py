"""Every default of every command, as dataclasses. One field is one flag.

Field names are the reference's flag names where it has one, so that a command written
for it runs here unchanged. `lsvcr.utils.arguments` turns flags and YAML into these.
"""

from lsvcr.settings.data import DoctorSettings, ExportOfficialSettings, PrepareSettings, SimulateSettings
from lsvcr.settings.deploy import ExportSettings, RecommendSettings, ServeSettings
from lsvcr.settings.fields import option
from lsvcr.settings.hllm import HllmSettings
from lsvcr.settings.judge import (
    ClickReportSettings,
    CompareSettings,
    EvaluateLlmSettings,
    EvaluateSettings,
    ReportSettings,
    TableSettings,
)
from lsvcr.settings.others import BaselineSettings, CompleteSettings, EpochSettings, FittedSettings
from lsvcr.settings.stages import AlignSettings, ConvertSettings, EmbedSettings, RankSettings, SRSettings

__all__ = [
    "AlignSettings",
    "BaselineSettings",
    "ClickReportSettings",
    "CompareSettings",
    "CompleteSettings",
    "ConvertSettings",
    "DoctorSettings",
    "EmbedSettings",
    "EpochSettings",
    "EvaluateLlmSettings",
    "EvaluateSettings",
    "ExportOfficialSettings",
    "ExportSettings",
    "FittedSettings",
    "HllmSettings",
    "PrepareSettings",
    "RankSettings",
    "RecommendSettings",
    "ReportSettings",
    "SRSettings",
    "ServeSettings",
    "SimulateSettings",
    "TableSettings",
    "option",
]
