"""The compute process, which makes the survey of the checkpoint before that."""

from __future__ import annotations

from ...ipc.entry import run_stage
from ...ipc.stage import Stage
from ..checkpoint.asked import survey_asked
from ..checkpoint.imports import importing


def main(stage: Stage) -> None:
    with importing():
        from .shell import ComputeShell

    ComputeShell(stage).run()


if __name__ == "__main__":
    run_stage(main, survey_asked)
