"""The compute process, which makes the survey of the checkpoint before that."""

from __future__ import annotations

from ...ipc.stage.entry import run_stage
from ...ipc.stage.stage import Stage
from ..surveyor.asked import survey_asked
from ..surveyor.imports import importing


def main(stage: Stage) -> None:
    with importing():
        from .shell import ComputeShell

    ComputeShell(stage).run()


if __name__ == "__main__":
    run_stage(main, survey_asked)
