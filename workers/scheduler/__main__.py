"""`python -m expertflow.workers.scheduler SPEC_FD`: started by the supervisor."""

from __future__ import annotations

from ...ipc.stage.entry import run_stage
from ...ipc.stage.stage import Stage
from .shell import SchedulerShell


def main(stage: Stage) -> None:
    SchedulerShell(stage).run()


if __name__ == "__main__":
    run_stage(main)
