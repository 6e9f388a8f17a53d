"""The SR model without the LLM: a bundle, and what answers from it; and what answers from a run."""

import os
import sys

from lsvcr.commands.command import Command, print_report
from lsvcr.settings import CompleteSettings, ExportSettings, RecommendSettings, ServeSettings


def _export(settings: ExportSettings) -> None:
    from lsvcr.export.bundle import export, summary

    sys.stdout.write(summary(export(settings), settings.out))


def _recommend(settings: RecommendSettings) -> None:
    # Read when NumPy is loaded: its products would take all cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(settings.threads))
    from lsvcr.recommend import recommend

    recommend(settings)


def _serve(settings: ServeSettings) -> None:
    # Read when NumPy and faiss are loaded: a product in two threads would take the event loop's core from it.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(settings.threads))
    from lsvcr.serving.http.starting import hangups_wait

    with hangups_wait():
        if settings.processes > 1:
            from lsvcr.serving.http.processes import serve_in_processes

            serve_in_processes(settings)
        else:
            from lsvcr.serving.http.server import serve

            serve(settings)


def _complete(settings: CompleteSettings) -> None:
    from lsvcr.experiments.complete import complete_history, print_completion

    print_report(complete_history(settings), settings.json, print_completion)


COMMANDS = {
    "export": Command(
        "Make a bundle that answers requests without torch, of runs of stage two, SASRec, BERT4Rec or HLLM light.",
        "lsvcr export ckpt/finetune/Rec ckpt/finetune/CommRank --data demo/data --out demo/bundle",
        _export,
        ExportSettings,
        places=("checkpoint", "other"),
        needs=("checkpoint", "data", "out"),
    ),
    "recommend": Command(
        "Ask a bundle: videos for a user, or the comments of a video, from the shell; one or many.",
        "lsvcr recommend bundles/demo --user 12 --k 5",
        _recommend,
        RecommendSettings,
        places=("bundle",),
        needs=("bundle",),
    ),
    "serve": Command(
        "Answer over HTTP from a bundle, with a page.",
        "lsvcr serve bundles/demo --port 8000 --state serving-state",
        _serve,
        ServeSettings,
        places=("bundle",),
        needs=("bundle",),
    ),
    "complete": Command(
        "Let a BERT4Rec run fill in videos behind a history, in front of it, or at either end in turn.",
        'lsvcr complete demo/bert4rec --data demo/data --history "30008487 30005253 30003335" --direction both --n 5',
        _complete,
        CompleteSettings,
        places=("run",),
        needs=("run", "data", "history"),
    ),
}
