"""The compute process; before it serves, it makes the survey of the checkpoint if asked to."""

from __future__ import annotations

from pathlib import Path

from ...ipc.stage.entry import run_stage
from ...ipc.stage.stage import Stage
from ..surveyor.entry import answer_survey_request, paused_garbage_collection


def main(stage: Stage) -> None:
    """Run compute until the supervisor stops it."""
    with paused_garbage_collection():
        from .shell import ComputeShell

    ComputeShell(stage).run()


def prepare(folder: str) -> None:
    """Import all modules that the model in `folder` needs, in a spare process that may replace this stage."""
    with paused_garbage_collection():
        from ..model.architecture import load_config, model_class
        from . import shell  # noqa: F401

        model_class(load_config(Path(folder)))


if __name__ == "__main__":
    run_stage(main, answer_survey_request, prepare)
