"""Draw faults and do them: kill, hang or starve workers of a running engine."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Literal, NamedTuple

import psutil

STAGES = ("scheduler", "predictor", "loader", "compute")
Kind = Literal["kill", "crash", "hang", "starve", "two at once", "while one restarts"]
KINDS: tuple[Kind, ...] = ("kill", "crash", "hang", "starve", "two at once", "while one restarts")
WEIGHTS = (4, 2, 1, 2, 2, 2)
"""A hang takes the watchdog its whole patience, so there are fewer of them."""

STARVE_RUN_S, STARVE_STOP_S = 0.05, 0.45
"""A starved worker runs for a tenth of the time."""
Pids = Callable[[str], list[int]]
"""Stage -> its processes now, a spare one last."""


class Fault(NamedTuple):
    """One fault; `seconds` is the length of starving, or the time until the second worker is killed."""

    kind: Kind
    stages: tuple[str, ...]
    seconds: float


def draw_fault(rng: random.Random, compute_share: float = 0.25) -> Fault:
    """Return a fault of a random kind at random workers, compute with this share of the chances."""
    weights = [1 - compute_share] * 3 + [3 * compute_share]
    [kind] = rng.choices(KINDS, WEIGHTS)
    first, second = rng.choices(STAGES, weights, k=2)
    match kind:
        case "two at once":
            others = [stage for stage in STAGES if stage != first]
            return Fault(kind, (first, rng.choice(others)), rng.choice([0.0, 0.002, 0.05]))
        case "while one restarts":
            return Fault(kind, (first, second), rng.uniform(0.02, 2.0))
        case _:
            return Fault(kind, (first,), rng.uniform(1.0, 4.0) if kind == "starve" else 0.0)


def strike(fault: Fault, pids: Pids) -> list[str]:
    """Do a fault; return the stages that have to be started again because of it. Takes as long as `Fault.seconds`."""
    match fault.kind:
        case "starve":
            _starve(pids(fault.stages[0])[:1], fault.seconds)
            return []
        case "hang":
            return _signal(fault.stages[0], pids, signal.SIGSTOP)
        case "crash":
            return _signal(fault.stages[0], pids, signal.SIGSEGV)
        case _:
            return list(_kill_each(fault, pids))


def _kill_each(fault: Fault, pids: Pids) -> Iterator[str]:
    for number, stage in enumerate(fault.stages):
        time.sleep(fault.seconds if number else 0)
        yield from _signal(stage, pids, signal.SIGKILL)


def _signal(stage: str, pids: Pids, number: signal.Signals) -> list[str]:
    """Send a signal to the first process of a stage; return the stage, or nothing if there is no process now."""
    for pid in pids(stage)[:1]:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            return [stage]
    return []


def _starve(targets: list[int], seconds: float) -> None:
    """Let processes run a tenth of the time only. One that ends meanwhile ends the starving."""
    end_s = time.monotonic() + seconds
    with suppress(ProcessLookupError):
        for pid in targets:
            while time.monotonic() < end_s:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(STARVE_STOP_S)
                os.kill(pid, signal.SIGCONT)
                time.sleep(STARVE_RUN_S)


def stage_pids(supervisor: int, stage: str) -> list[int]:
    """Return the processes of a stage among the children of a supervisor, the oldest first."""
    with suppress(psutil.Error):
        children = sorted(psutil.Process(supervisor).children(), key=psutil.Process.create_time)
        return [child.pid for child in children if _is_stage(child, stage)]
    return []


def _is_stage(process: psutil.Process, stage: str) -> bool:
    with suppress(psutil.Error):
        return f"expertflow.workers.{stage}" in process.cmdline()
    return False
