"""Entry point of the loader process."""

from __future__ import annotations

from ...ipc.stage.entry import run_stage
from ...ipc.stage.stage import Stage
from .shell import LoaderShell


def main(stage: Stage) -> None:
    LoaderShell(stage).run()


if __name__ == "__main__":
    run_stage(main)
