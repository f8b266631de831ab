"""Earlier runs on this machine, forecast beside measured, kept in the user's cache: sizes and times, never a prompt."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from statistics import median

import msgspec

from ...configs.decoding import UNDECODABLE
from ...configs.user_cache import cache_folder
from ...workers.checkpoint.survey import ModelSizes
from ...workers.kernels.table import KernelTable
from .disk_rate import DiskRate
from .forecast import Rates, Routing, compute_s, distinct_experts, reuse_of

FILE = "past-runs.json"
MAX_RUNS = 300
"""Runs that are kept, the newest."""
MAX_DISKS = 20
MIN_STEPS = 12
"""Decode steps of a run that says anything."""
RECENT = 9
"""Runs that the next forecast is corrected by."""
MOST_CORRECTION = 3.0
"""Largest correction of computing, either way: a run beside other work may be ten times slower, and says little."""
SEEN_LOADS = 0.002
"""A smaller share of loads says that slots were enough, not how far they would go."""


class PastRun(msgspec.Struct, frozen=True, kw_only=True):
    """Decode steps of one run, on average."""

    machine: str
    """Digest of what kernels depend on (workers/kernels/machine.py)."""
    model: str
    share: float
    """Share of the experts that slots held."""
    rows: float
    steps: int
    step_s: float
    """Time of compute at work on a step, stalls included."""
    compute_s: float
    """The same without stalls."""
    experts: float
    """Distinct experts of a step, over all layers."""
    loads: float
    """Experts read for a step, prefetches included."""
    forecast_s: float
    """Time of a step as it was forecast from what was known before this run."""

    @property
    def error(self) -> float:
        """Return by how much the forecast of tokens a second was off, as a share of what was measured."""
        return abs(self.step_s / self.forecast_s - 1)


class Past(msgspec.Struct, kw_only=True):
    """Everything in the file."""

    runs: list[PastRun] = []
    disks: dict[str, DiskRate] = {}
    """Device number of a file system and reader threads -> the rate that was measured last."""

    def of(self, machine: str, model: str) -> list[PastRun]:
        """Return the runs of a model on a machine."""
        return [run for run in self.runs if (run.machine, run.model) == (machine, model)]


def machine_key(kernels: KernelTable) -> str:
    """Return the digest of a machine, with the threads of compute."""
    return hashlib.sha256(msgspec.json.encode(sorted(kernels.machine.items()))).hexdigest()[:16]


def model_key(sizes: ModelSizes, fingerprint: str) -> str:
    """Return the digest of a model; a widened copy, or another dtype, has another."""
    facts = [fingerprint, sizes.architecture, sizes.dtype, sizes.layers, sizes.experts, sizes.stride_bytes]
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:16]


def disk_key(file: Path, readers: int) -> str:
    """Return the key of the rate of a file's disk."""
    return f"{os.stat(file).st_dev}:{readers}"


def read_past(folder: Callable[[], Path] = cache_folder) -> Past:
    """Return what the cache holds; nothing if there is no file, or one that cannot be read."""
    with suppress(OSError, RuntimeError, *UNDECODABLE):
        return msgspec.json.decode((folder() / FILE).read_bytes(), type=Past)
    return Past()


def change_past(change: Callable[[Past], None], folder: Callable[[], Path] = cache_folder) -> None:
    """Change the file, one process at a time, and keep it bounded; without a writable cache nothing is kept."""
    with suppress(OSError, RuntimeError):
        file = folder() / FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            past = read_past(folder)
            change(past)
            past.runs, past.disks = past.runs[-MAX_RUNS:], dict(list(past.disks.items())[-MAX_DISKS:])
            partial = file.with_suffix(".partial")
            partial.write_bytes(msgspec.json.encode(past))
            partial.replace(file)
        finally:
            os.close(descriptor)


def median_error(runs: Iterable[PastRun]) -> float | None:
    """Return the median error of forecasts; None without any."""
    errors = [run.error for run in runs]
    return median(errors) if errors else None


def learn_routing(runs: list[PastRun], sizes: ModelSizes, rows: int) -> Routing:
    """Return the routing by the runs whose rows are nearest to `rows`; the prior where nothing was learnt."""
    near = _nearest(runs, rows)
    at_random = [sizes.layers * distinct_experts(sizes, round(run.rows), Routing()) for run in near]
    told = [run.experts / each for run, each in zip(near, at_random, strict=True)]
    missing = _nearest([run for run in runs if run.share < 1 and run.loads > SEEN_LOADS * run.experts], rows)
    reuses = [reuse_of(run.loads / run.experts, run.share) for run in missing]
    if not reuses:
        return Routing(distinct=median(told)) if told else Routing()
    of_rows = max(1, round(missing[0].rows))
    return Routing(reuse=median(reuses), reuse_of_rows=of_rows, distinct=median(told))


def learn_correction(runs: list[PastRun], sizes: ModelSizes, rates: Rates, rows: int) -> float:
    """Return the time of computing to what the table says, by runs that had every expert in its slot; else 1."""
    whole = _nearest([run for run in runs if run.share >= 1], rows)
    used = [max(run.experts / sizes.layers, sizes.top_k) for run in whole]
    ratios = [
        run.compute_s / compute_s(sizes, rates.kernels, max(1, round(run.rows)), each)
        for run, each in zip(whole, used, strict=True)
    ]
    return min(max(median(ratios), 1 / MOST_CORRECTION), MOST_CORRECTION) if ratios else 1.0


def _nearest(runs: list[PastRun], rows: int) -> list[PastRun]:
    """Return the runs whose number of rows is nearest to `rows`, as a ratio; the newest of them."""
    away = {id(run): max(run.rows, rows) / max(min(run.rows, rows), 1e-9) for run in runs}
    least = min(away.values(), default=0.0)
    return [run for run in runs if away[id(run)] <= 1.25 * least][-RECENT:]
