"""The compute process, which makes the survey of the checkpoint before that."""

from __future__ import annotations

from pathlib import Path

from ...ipc.stage.entry import run_stage
from ...ipc.stage.stage import Stage
from ..surveyor.entry import answer_survey_request, paused_garbage_collection


def main(stage: Stage) -> None:
    with paused_garbage_collection():
        from .shell import ComputeShell

    ComputeShell(stage).run()


def prepare(folder: str) -> None:
    """Import what the model in `folder` needs, as a spare that waits for the death of its predecessor."""
    with paused_garbage_collection():
        from ..model.architecture import load_config, model_class
        from . import shell  # noqa: F401

        model_class(load_config(Path(folder)))


if __name__ == "__main__":
    run_stage(main, answer_survey_request, prepare)
