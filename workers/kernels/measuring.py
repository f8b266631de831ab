"""Times the kernels of every shape at every step of rows, within a few seconds.

Kernels take turns, so that whatever slows the machine for a while slows all of them. A run in which the system gave a
core to another process, or let a thread wait for one, does not count where there are others. A kernel that is far
behind is left out for more rows: which kernels are near each other changes slowly with the number of rows.
"""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from .table import ROW_STEPS
from .workloads import Workload

LIMIT_S = 8.0
"""Seconds after which no further kernel is timed; one run takes at most some tenths."""
CLEAN_RUNS, MAX_RUNS = 3, 8
"""A kernel near the best is run until so many runs were undisturbed, or until it was run this often."""
NEAR, FAR = 1.5, 4.0
"""Times of the best kernel: beyond NEAR one clean run is enough, beyond FAR the kernel is left out for more rows."""
MUCH_FASTER = 0.8
"""With disturbed runs, a kernel replaces that of the step before only if it takes this share of its time."""
MAX_WAITED = 0.05
"""Share of a run for which its threads may have waited for a core: one that is woken late was not switched out."""
MAX_DISTURBED = 0.2
"""A larger share of choices without a single undisturbed run: the machine was too busy to trust them."""


class Measured(NamedTuple):
    """Key of a shape -> for each of `ROW_STEPS` the fastest kernel, and the microseconds of those that were timed.

    A shape is missing if not even one row could be timed.
    """

    choices: dict[str, list[str]]
    times_us: dict[str, list[dict[str, float]]]
    is_reliable: bool
    """False: other processes took the cores in most runs."""


class Timed(NamedTuple):
    """The runs of a kernel: shortest seconds without another process on its cores, and of all runs."""

    clean_s: float = float("inf")
    any_s: float = float("inf")
    clean_runs: int = 0

    @property
    def seconds(self) -> float:
        """Return the time that counts."""
        return self.clean_s if self.clean_runs else self.any_s

    def add(self, seconds: float, is_clean: bool) -> Timed:
        """Return the same with one more run."""
        clean_s = min(self.clean_s, seconds) if is_clean else self.clean_s
        return Timed(clean_s, min(self.any_s, seconds), self.clean_runs + is_clean)


class Measuring:
    """Times the candidates of workloads; `report` is called with the number of steps done and the number of all."""

    def __init__(
        self,
        works: list[Workload],
        report: Callable[[int, int], None],
        limit_s: float = LIMIT_S,
        clock_s: Callable[[], float] = time.perf_counter,
        count_switches: Callable[[], int] = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
        waited_s: Callable[[], float] = lambda: waited_for_core_s(Path("/proc/self/task")),
    ) -> None:
        """`count_switches` returns how often the system took a core from this process so far.

        `waited_s` returns for how many seconds its threads have waited for one.
        """
        self._works, self._report, self._limit_s = works, report, limit_s
        self._clock_s, self._count_switches, self._waited_s = clock_s, count_switches, waited_s
        self._number = 0
        """Number of the next weights."""
        self._left = {work.key: list(work.candidates) for work in works}
        self._choices: dict[str, list[str]] = {}
        self._times_us: dict[str, list[dict[str, float]]] = {}

    @torch.inference_mode()
    def run(self) -> Measured:
        """Time everything. More rows than the time allows get the kernel of the last step that was timed."""
        steps = [(rows, work) for rows in ROW_STEPS for work in self._works]
        deadline, disturbed, timed_steps = self._clock_s() + self._limit_s, 0, 0
        for done, (rows, work) in enumerate(steps):
            self._report(done, len(steps))
            allowance_s = (deadline - self._clock_s()) / (len(steps) - done)
            times = self._time_step(work, rows, 2 * allowance_s) if allowance_s > 0 else {}
            self._note(work.key, times)
            timed_steps += bool(times)
            disturbed += bool(times) and _is_disturbed(times)
        self._report(len(steps), len(steps))
        return Measured(self._choices, self._times_us, disturbed <= MAX_DISTURBED * timed_steps)

    def _note(self, key: str, times: dict[str, Timed]) -> None:
        """Choose the fastest kernel of a step; without times, that of the step before."""
        chosen = self._choices.get(key, [])
        if not times and not chosen:
            return
        choice = _choose(times, chosen[-1]) if chosen else min(times, key=lambda kernel: times[kernel].seconds)
        self._choices.setdefault(key, []).append(choice)
        rounded = {kernel: round(1e6 * timed.seconds, 1) for kernel, timed in times.items()}
        self._times_us.setdefault(key, []).append(rounded)
        if times:
            best_s = min(timed.seconds for timed in times.values())
            self._left[key] = [name for name, own in times.items() if not own.clean_runs or own.clean_s <= FAR * best_s]

    def _time_step(self, work: Workload, rows: int, allowance_s: float) -> dict[str, Timed]:
        """Return the times of the kernels of a workload at one number of rows, without those that fail."""
        end = self._clock_s() + allowance_s
        work.prepare(rows)
        times = {kernel: Timed() for kernel in self._left[work.key] if self._warm_up(work, kernel)}
        for turn in range(MAX_RUNS):
            waiting = _unfinished(times)
            if not waiting or (turn and self._clock_s() > end):
                break
            for kernel in waiting:
                times[kernel] = times[kernel].add(*self._time_run(work, kernel))
        return times

    def _warm_up(self, work: Workload, kernel: str) -> bool:
        """Run a kernel once; return False if it fails."""
        try:
            self._time_run(work, kernel)
        except Exception as error:  # noqa: BLE001 - a kernel that cannot run is no candidate, whatever the reason
            logging.getLogger(__name__).warning("kernel %s is left out for %s: %s", kernel, work.key, error)
            return False
        return True

    def _time_run(self, work: Workload, kernel: str) -> tuple[float, bool]:
        """Return the seconds of a run and whether no core was taken away meanwhile."""
        switches, waited_s, started = self._count_switches(), self._waited_s(), self._clock_s()
        work.run(kernel, self._number)
        self._number += 1
        seconds = self._clock_s() - started
        is_clean = self._count_switches() == switches and self._waited_s() - waited_s <= MAX_WAITED * seconds
        return seconds, is_clean


def _choose(times: dict[str, Timed], previous: str) -> str:
    """Return the fastest kernel, or that of the step before where nothing speaks clearly against it."""
    if not times:
        return previous
    best = min(times, key=lambda kernel: times[kernel].seconds)
    if previous in times and _is_disturbed(times):
        return best if times[best].seconds < MUCH_FASTER * times[previous].seconds else previous
    return best


def _is_disturbed(times: dict[str, Timed]) -> bool:
    """Return whether some kernel had no undisturbed run."""
    return not all(timed.clean_runs for timed in times.values())


def _unfinished(times: dict[str, Timed]) -> list[str]:
    """Return the kernels that need another run: near the best, and not yet run often enough."""
    best_s = min((timed.seconds for timed in times.values()), default=0.0)
    enough = {kernel: CLEAN_RUNS if timed.seconds <= NEAR * best_s else 1 for kernel, timed in times.items()}
    return [kernel for kernel, timed in times.items() if timed.clean_runs < enough[kernel]]


def waited_for_core_s(tasks: Path) -> float:
    """Return for how many seconds the threads of a process have been ready to run without a core, all together.

    0 where the kernel does not count it.
    """
    waited_ns = 0
    for task in tasks.iterdir():
        with suppress(OSError, ValueError, IndexError):  # a thread that has just ended, or no such count
            waited_ns += int((task / "schedstat").read_text().split()[1])
    return waited_ns / 1e9
