"""Which stages there are, and what each is started with."""

from __future__ import annotations

import os
from typing import NamedTuple

from ...configs.schema import Config
from ...configs.sizes import parse_size
from ...ipc.stage.wiring import decoders_of

KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
"""Freed activations stay with the process: given back, every prefill would have them cleared and mapped again."""
PASSIVE = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
"""Of all but compute: a waiting thread sleeps at once."""
SPINS_RESIDENT, SPINS = 100_000, 10_000
"""How long a thread of compute looks for work before it sleeps: 10,000 are half a millisecond. Where 100 % of the
experts are asked for, work comes soon; while experts are loaded the loader needs the core (docs/performance.md)."""


class StagePlan(NamedTuple):
    """How one stage is started: `python ARGUMENTS… LINE_FD`, with `environment` on top of ours."""

    stage: str
    arguments: tuple[str, ...]
    environment: dict[str, str] = {}
    memory: tuple[str, ...] = ()
    """The shared memory it is given, if there is such."""
    nice: int = 0
    surveys: bool = False
    """One of them does, before it is told the rest: it imports what both take."""

    @property
    def peers(self) -> set[str]:
        return set(decoders_of(self.stage))


def stage_plans(config: Config) -> list[StagePlan]:
    """The stages of an engine; the slowest to start comes first."""
    return [
        _compute(config),
        _worker("loader", 1, ("slots", "host")),
        _worker("predictor", 1, nice=10),
        _worker("scheduler", 1),
    ]


def _memory_of_compute(config: Config) -> tuple[str, ...]:
    """Slots of a device are its own: it copies into them from the host store."""
    return ("host",) if config.on_device else ("slots",)


def compute_threads(config: Config) -> int:
    """What the configuration says, else all cores up to two, else all but one (left to loader and scheduler)."""
    cores = len(os.sched_getaffinity(0))
    return config.compute_threads or (cores if cores <= 2 else cores - 1)


def _compute(config: Config) -> StagePlan:
    resident = parse_size(config.expert_memory, "expert_memory").share == 1
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
    # -P: a folder of the user's that bears the name of a module must not be imported instead of it.
    arguments = ("-P", "-m", f"expertflow.workers.{stage}")
    return StagePlan(stage, arguments, {**_environment(threads), **own}, memory, nice)


def _environment(threads: int) -> dict[str, str]:
    """Read by the numeric libraries when they are imported: a spinning thread takes a core from everybody else."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return {
        **dict.fromkeys(counts, str(threads)),
        "TOKENIZERS_PARALLELISM": "false",
        "MALLOC_ARENA_MAX": "2",
    }
