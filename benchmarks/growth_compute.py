"""Compute as growth.py starts it: the stage itself, which notes how its processor time divides.

In the file that $GROWTH_FILE names: nanoseconds of the main thread in all; in the model's forward; in our experts
layers, which run inside of that; in the kernels inside of these.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from expertflow.ipc.stage.entry import run_stage
from expertflow.ipc.stage.stage import Stage
from expertflow.workers.surveyor.asked import survey_asked
from growth_places import ALL, FORWARD, KERNELS, LAYERS

SPENT = np.memmap(os.environ["GROWTH_FILE"], dtype=np.int64, mode="r+")


def timed(place: int, work: Callable[..., Any]) -> Callable[..., Any]:
    """The same, with its time added up."""

    def run(*arguments: Any, **options: Any) -> Any:
        started = time.thread_time_ns()
        try:
            return work(*arguments, **options)
        finally:
            ended = time.thread_time_ns()
            SPENT[place] += ended - started
            SPENT[ALL] = ended

    return run


def main(stage: Stage) -> None:
    from expertflow.workers.compute.experts import layer as experts
    from expertflow.workers.compute.shell import ComputeShell
    from expertflow.workers.model import unit

    experts.run_expert = timed(KERNELS, experts.run_expert)
    experts.reduce_choices = timed(KERNELS, experts.reduce_choices)
    experts.ExpertsLayer.forward = timed(LAYERS, experts.ExpertsLayer.forward)
    unit.Unit.run = timed(FORWARD, unit.Unit.run)
    ComputeShell(stage).run()


if __name__ == "__main__":
    run_stage(main, survey_asked)
