"""`python -m expertflow.workers.scheduler SPEC_FD`: started by the supervisor."""

from __future__ import annotations

from ...ipc.entry import run_stage
from ...ipc.stage import Stage


def main(stage: Stage) -> None:
    from .shell import SchedulerShell

    SchedulerShell(stage).run()


if __name__ == "__main__":
    run_stage(main)
