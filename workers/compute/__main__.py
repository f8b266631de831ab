"""The compute process."""

from __future__ import annotations

from ...ipc.entry import run_stage
from ...ipc.stage import Stage


def main(stage: Stage) -> None:
    from .shell import ComputeShell

    ComputeShell(stage).run()


def prepare() -> None:
    """All that takes long and depends on no model."""
    from . import shell  # noqa: F401


if __name__ == "__main__":
    run_stage(main, prepare)
