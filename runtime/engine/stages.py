"""The stages of an engine, and the command line and environment of each."""

from __future__ import annotations

import os
from typing import NamedTuple

from ...configs.schema import Config
from ...ipc.stage.wiring import decoders_of
from .budgets import is_resident

KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
"""Keeps freed activations in the process: otherwise the kernel clears and maps them again in every prefill."""
PASSIVE = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
"""Environment of all stages but compute: a waiting thread sleeps at once."""
SPINS_RESIDENT, SPINS = 100_000, 10_000
"""Turns that a thread of compute spins for work before it sleeps: 10,000 are half a millisecond. With 100 % of the
experts in slots, work comes soon; while experts are loaded the loader needs the core (docs/performance.md)."""


class StagePlan(NamedTuple):
    """Start of one stage: `python ARGUMENTS… SOCKET_FD SUPERVISOR_PID`, `environment` extends the supervisor's."""

    stage: str
    arguments: tuple[str, ...]
    environment: dict[str, str] = {}
    memory: tuple[str, ...] = ()
    """Names of the shared memory that the stage gets where it exists."""
    nice: int = 0
    surveys: bool = False
    """The stage makes the survey before it gets its spec; exactly one stage does, as both need the same imports."""

    @property
    def peers(self) -> set[str]:
        """Return the stages that this stage has links to."""
        return set(decoders_of(self.stage))


def stage_plans(config: Config) -> list[StagePlan]:
    """Return the stages of an engine; the slowest to start comes first."""
    return [
        _compute(config),
        _worker("loader", 1, ("slots", "host")),
        _worker("predictor", 1, nice=10),
        _worker("scheduler", 1),
    ]


def _memory_of_compute(config: Config) -> tuple[str, ...]:
    """Return the shared memory of compute.

    On a device compute copies from the host store into slots of its own; with link = dma slots refer to the store.
    """
    if config.on_device:
        return ("host",)
    return ("slots", "host") if config.link == "dma" else ("slots",)


def compute_threads(config: Config) -> int:
    """Return the configured number of threads, else all cores up to two, else all but one (for other stages)."""
    cores = len(os.sched_getaffinity(0))
    return config.compute_threads or (cores if cores <= 2 else cores - 1)


def _compute(config: Config) -> StagePlan:
    resident = is_resident(config)
    own = {
        "GOMP_SPINCOUNT": str(SPINS_RESIDENT if resident else SPINS),
        "KMP_BLOCKTIME": "1",
        "TRANSFORMERS_VERBOSITY": os.environ.get("TRANSFORMERS_VERBOSITY", "error"),
        **KEPT_MEMORY,
    }
    return _worker("compute", compute_threads(config), _memory_of_compute(config), own=own)._replace(surveys=True)


def _worker(
    stage: str, threads: int, memory: tuple[str, ...] = (), nice: int = 0, own: dict[str, str] = PASSIVE
) -> StagePlan:
    # -P: a folder in the working directory must not shadow a module of the same name.
    arguments = ("-P", "-m", f"expertflow.workers.{stage}")
    return StagePlan(stage, arguments, {**_environment(threads), **own}, memory, nice)


def _environment(threads: int) -> dict[str, str]:
    """Return the variables that numeric libraries read at import: a spinning thread takes a core from other stages."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return {
        **dict.fromkeys(counts, str(threads)),
        "TOKENIZERS_PARALLELISM": "false",
        "MALLOC_ARENA_MAX": "2",
    }
