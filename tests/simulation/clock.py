"""Puts simulated time, sockets and processes under the real shells, while a history runs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from expertflow.configs.schema import Config
from expertflow.ipc.stage import stage
from expertflow.runtime.client import pool
from expertflow.runtime.engine import engine, orders
from expertflow.tests.simulation import processes, wires
from expertflow.tests.simulation.current import CURRENT
from expertflow.workers.compute import shell as compute_shell
from expertflow.workers.loader import runtime as loader_runtime
from expertflow.workers.predictor import shell as predictor_shell
from expertflow.workers.scheduler import admission, prefixes
from expertflow.workers.scheduler import shell as scheduler_shell
from expertflow.workers.scheduler.limits import SchedulerLimits
from expertflow.workers.scheduler.shell import scheduler_limits as shell_limits

IDLE_POLL_MS = 500
"""The supervisor's longest wait, 50 ms in reality: fewer turns in which nothing happens."""


class SimulatedTime:
    """The module `time`, as far as shells use it."""

    def monotonic_ns(self) -> int:
        return CURRENT.world.agenda.now_us * 1000

    def monotonic(self) -> float:
        return CURRENT.world.agenda.now_us / 1e6


@contextmanager
def simulated() -> Iterator[None]:
    """Let the shells use simulated time and sockets. Blocks of prefixes are short, since prompts are."""
    time = SimulatedTime()
    clocks = (stage, pool, engine, orders, compute_shell, loader_runtime, predictor_shell, scheduler_shell)
    parts: list[tuple[Any, str, Any]] = [
        *((module, "time", time) for module in clocks),
        (stage, "Link", wires.SimulatedLink),
        (stage, "logging", QuietLogging()),
        (engine, "logging", QuietLogging()),
        (engine, "POLL_MS", IDLE_POLL_MS),
        (scheduler_shell, "Router", wires.ClientRouter),
        (scheduler_shell, "logging", QuietLogging()),
        (scheduler_shell, "scheduler_limits", scheduler_limits),
        (predictor_shell, "make_forecaster", processes.make_forecaster),
        (loader_runtime, "open_fills", processes.open_fills),
        (prefixes, "BLOCK", 2),
        (admission, "MIN_SHARED", 3),
    ]
    with pytest.MonkeyPatch.context() as patched, without_garbage_collection():
        for where, name, part in parts:
            patched.setattr(where, name, part)
        yield


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Leave garbage lie: a third of the time of a history goes into looking through what torch has imported."""
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def scheduler_limits(config: Config) -> SchedulerLimits:
    """Return the limits of the configuration, with chunks as short as the prompts are."""
    limits = shell_limits(config)
    return msgspec.structs.replace(limits, prefill_chunk=CURRENT.world.plan.chunk)


class QuietLogging:
    """The module `logging`, without a word: a history makes thousands of lines."""

    def getLogger(self, name: str) -> QuietLogging:  # noqa: N802 - the name in the standard library
        return self

    def info(self, *words: object) -> None: ...

    debug = warning = exception = info
