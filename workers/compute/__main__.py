"""The compute process, which makes the survey of the checkpoint before that."""

from __future__ import annotations

from pathlib import Path

from ...ipc.stage.entry import run_stage
from ...ipc.stage.stage import Stage
from ..surveyor.asked import survey_asked
from ..surveyor.imports import importing


def main(stage: Stage) -> None:
    with importing():
        from .shell import ComputeShell

    ComputeShell(stage).run()


def prepare(folder: str) -> None:
    """Import what the model in `folder` needs, as a spare that waits for the death of its predecessor."""
    with importing():
        from ..model.architecture import load_config, model_class
        from . import shell  # noqa: F401

        model_class(load_config(Path(folder)))


if __name__ == "__main__":
    run_stage(main, survey_asked, prepare)
