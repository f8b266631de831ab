"""The predictor process."""

from __future__ import annotations

from ...ipc.stage.entry import run_stage
from ...ipc.stage.stage import Stage
from .shell import PredictorShell


def main(stage: Stage) -> None:
    """Serve until the supervisor stops the stage."""
    PredictorShell(stage).run()


if __name__ == "__main__":
    run_stage(main)
