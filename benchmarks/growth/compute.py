"""Run the compute stage and note how its processor time divides; started by the benchmark of growth.

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
from expertflow.workers.surveyor.entry import answer_survey_request

ALL, FORWARD, LAYERS, KERNELS = range(4)
"""Indices of the parts in the file."""


def timed(spent: np.ndarray, place: int, work: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function, with its time added up."""

    def run(*arguments: Any, **options: Any) -> Any:
        started = time.thread_time_ns()
        try:
            return work(*arguments, **options)
        finally:
            ended = time.thread_time_ns()
            spent[place] += ended - started
            spent[ALL] = ended

    return run


def main(stage: Stage) -> None:
    from expertflow.workers.compute.experts import layer as experts
    from expertflow.workers.compute.shell import ComputeShell
    from expertflow.workers.model import unit

    spent = np.memmap(os.environ["GROWTH_FILE"], dtype=np.int64, mode="r+")
    experts.run_expert = timed(spent, KERNELS, experts.run_expert)
    experts.reduce_choices = timed(spent, KERNELS, experts.reduce_choices)
    experts.ExpertsLayer.forward = timed(spent, LAYERS, experts.ExpertsLayer.forward)
    unit.Unit.run = timed(spent, FORWARD, unit.Unit.run)
    ComputeShell(stage).run()


if __name__ == "__main__":
    run_stage(main, answer_survey_request)
