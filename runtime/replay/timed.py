"""Timed replay: the loader's ledger and compute's holdings themselves, under a virtual clock.

Only what surrounds the cores is imagined: kernels, the link, the way of a message. Compute does as the real one does
(workers/compute/experts/residency.py): it hears the loader when a layer begins, after each
expert, and while it waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ...ipc.messages import HeldFromLoader, Hint
from ...workers.compute.experts.holdings import (
    Computed,
    Holdings,
    HoldingsEvent,
    LayerEnded,
    LayerStarted,
    LoaderJoined,
    Run,
)
from ...workers.loader.events import ComputeJoined
from ...workers.loader.ledger import Ledger
from ...workers.loader.statistics import LedgerStatistics
from .machine import Machine, MachineTimings, Timings
from .predictions import Hinting, Planning
from .steps import Program
from .virtual_loader import VirtualClock, VirtualLoader


class TimedOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """Counts as the real processes keep them, and times of the imagined machine."""

    steps: int
    hits: int
    misses: int
    stall_ns: int
    total_ns: int
    ledger: LedgerStatistics

    @property
    def hit_rate(self) -> float:
        return self.hits / max(self.hits + self.misses, 1)

    @property
    def stall_share(self) -> float:
        """Of the whole time."""
        return self.stall_ns / max(self.total_ns, 1)


def replay_timed(
    program: Program,
    ledger: Ledger,
    slots: int,
    machine: Machine,
    *,
    timings: Timings | None = None,
    hints: Hinting | None = None,
    plans: Planning | None = None,
) -> TimedOutcome:
    """Run all steps; `ledger` is a fresh one of `slots` slots. `timings`: of compute, instead of the machine's own."""
    clock = VirtualClock()
    compute = _Compute(program, slots, machine, clock, timings or MachineTimings(machine, program.layers), hints, plans)
    compute.loader = VirtualLoader(ledger, machine, clock, compute.reach)
    compute.start()
    clock.run()
    return TimedOutcome(
        steps=program.steps,
        hits=compute.holdings.hits,
        misses=compute.holdings.misses,
        stall_ns=compute.stall_ns,
        total_ns=compute.end_ns,
        ledger=ledger.statistics(),
    )


class _Compute:
    """The compute process. Its thread yields how long it is busy, or None to wait for the loader."""

    loader: VirtualLoader

    def __init__(
        self,
        program: Program,
        slots: int,
        machine: Machine,
        clock: VirtualClock,
        timings: Timings,
        hints: Hinting | None,
        plans: Planning | None,
    ) -> None:
        self._program, self._machine, self._clock = program, machine, clock
        self._timings, self._hints, self._plans = timings, hints, plans
        self.holdings = Holdings(slots, program.layers, program.experts)
        self.stall_ns = self.end_ns = 0
        self._inbox: list[HeldFromLoader] = []
        self._waiting = False
        self._thread = self._run()

    def start(self) -> None:
        self.loader.receive(ComputeJoined())
        self._tell_holdings(LoaderJoined())
        self._clock.after(0, self._resume)

    def reach(self, message: HeldFromLoader) -> None:
        """The loader's message is there; it is heard when compute listens."""
        self._inbox.append(message)
        if self._waiting:
            self._waiting = False
            self._clock.after(0, self._resume)

    def _resume(self) -> None:
        busy_ns = next(self._thread, -1)
        if busy_ns is None:
            self._waiting = True
        elif busy_ns >= 0:
            self._clock.after(busy_ns, self._resume)
        else:
            self.end_ns = self._clock.now_ns

    def _run(self) -> Iterator[int | None]:
        for step in range(self._program.steps):
            yield self._timings.pause_ns(step)
            self._take_inbox()
            self._plan(step)
            before = self.holdings.hits, self.holdings.misses, self.stall_ns
            yield self._timings.before_ns(step)
            for layer in range(self._program.layers):
                yield from self._run_layer(step, layer)
                yield self._timings.after_ns(step, layer)
            self._report(step, *before)

    def _run_layer(self, step: int, layer: int) -> Iterator[int | None]:
        tokens = self._program.experts_of(step, layer)
        self._take_inbox()
        runs = self._tell_holdings(LayerStarted(step, layer, list(tokens)))
        self._hint(step, layer + 1)
        while runs or not self.holdings.layer_done:
            if not runs:
                yield from self._wait()
            for expert in runs[:1]:
                yield self._timings.expert_ns(step, layer, tokens[expert])
                self._tell_holdings(Computed([expert]))
            runs = runs[1:] + self._take_inbox()
        self._tell_holdings(LayerEnded())

    def _wait(self) -> Iterator[int | None]:
        if not self._inbox:
            began_ns = self._clock.now_ns
            yield None
            self.stall_ns += self._clock.now_ns - began_ns

    def _take_inbox(self) -> list[int]:
        """The experts that can be computed because of what the loader said."""
        inbox, self._inbox = self._inbox, []
        return [expert for message in inbox for expert in self._tell_holdings(message)]

    def _tell_holdings(self, event: HoldingsEvent) -> list[int]:
        runs: list[int] = []
        for action in self.holdings.handle(event):
            if isinstance(action, Run):
                runs += [expert for expert, _ in action.experts]
            else:
                self._tell_loader(action)
        return runs

    def _tell_loader(self, message: Any, delay_ns: int = 0) -> None:
        self._clock.after(delay_ns + self._machine.message_ns, lambda: self.loader.receive(message))

    def _hint(self, step: int, layer: int) -> None:
        if self._hints is not None and layer < self._program.layers:
            scores = self._hints.scores(step, layer)
            if scores is not None:
                self._tell_loader(Hint(step, layer, scores))

    def _plan(self, step: int) -> None:
        for delay_ns, plan in () if self._plans is None else self._plans.begin(step):
            self._tell_loader(plan, delay_ns)

    def _report(self, step: int, hits: int, misses: int, stall_ns: int) -> None:
        counts = self.holdings.hits - hits, self.holdings.misses - misses, self.stall_ns - stall_ns
        used = self._program.used(step, *counts)
        self._tell_loader(used)
        if self._plans is not None:
            self._plans.learn(used)
