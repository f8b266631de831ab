"""Timed replay: the loader's ledger and compute's holdings themselves, under a virtual clock.

Only what surrounds the cores is imagined: kernels, the link, the way of a message. Compute does as the real one does
(workers/compute/residency.py): it hears the loader when a layer begins and while it waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import msgspec
import numpy as np

from ...ipc.messages import ComputeFromLoader, Forecast, Hint, Plan, Used
from ...workers.compute.holdings import Computed, Holdings, HoldingsEvent, LayerEnded, LayerStarted, LoaderJoined, Run
from ...workers.loader.events import ComputeJoined, FillDone, LedgerEvent, PromoteFill, StartFill
from ...workers.loader.ledger import Ledger, LedgerStatistics
from .atomic import Hints
from .clock import VirtualClock
from .link import VirtualLink
from .machine import Machine
from .program import Program

CERTAIN = 255


class Predictor(Protocol):
    """A `Forecaster` (workers/predictor/forecaster.py)."""

    def forecast(self, coming: Forecast) -> np.ndarray: ...

    def learn(self, used: Used) -> None: ...


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
    hints: Hints | None = None,
    predictor: Predictor | None = None,
    steps_ahead: int = 0,
) -> TimedOutcome:
    """Run all steps; `ledger` is a fresh one of `slots` slots.

    `predictor` forecasts each step when the step `steps_ahead` before it begins (1: as with two units, where another
    unit's step runs meanwhile), from what it has learnt until then.
    """
    world = _World(program, ledger, slots, machine, hints, predictor, steps_ahead)
    world.run()
    return world.outcome()


class _World:
    def __init__(
        self,
        program: Program,
        ledger: Ledger,
        slots: int,
        machine: Machine,
        hints: Hints | None,
        predictor: Predictor | None,
        steps_ahead: int,
    ) -> None:
        self._program, self._machine, self._hints = program, machine, hints
        self._predictor, self._steps_ahead = predictor, steps_ahead
        self._clock = VirtualClock()
        self._loader = _Loader(ledger, machine, self._clock, self._reach_compute)
        self._holdings = Holdings(slots, program.layers, program.experts)
        self._inbox: list[ComputeFromLoader] = []
        self._waiting = False
        self._stall_ns = self._end_ns = 0
        self._thread = self._compute()

    def run(self) -> None:
        self._loader.hear(ComputeJoined())
        self._tell_holdings(LoaderJoined())
        self._clock.after(0, self._resume)
        self._clock.run()

    def outcome(self) -> TimedOutcome:
        return TimedOutcome(
            steps=self._program.steps,
            hits=self._holdings.hits,
            misses=self._holdings.misses,
            stall_ns=self._stall_ns,
            total_ns=self._end_ns,
            ledger=self._loader.ledger.statistics(),
        )

    # Compute: a thread that yields how long it is busy, or None to wait for the loader

    def _resume(self) -> None:
        busy_ns = next(self._thread, -1)
        if busy_ns is None:
            self._waiting = True
        elif busy_ns >= 0:
            self._clock.after(busy_ns, self._resume)
        else:
            self._end_ns = self._clock.now_ns

    def _reach_compute(self, message: ComputeFromLoader) -> None:
        self._inbox.append(message)
        if self._waiting:
            self._waiting = False
            self._clock.after(0, self._resume)

    def _compute(self) -> Iterator[int | None]:
        for ahead in range(min(self._steps_ahead, self._program.steps)):
            self._foresee(ahead)
        for step in range(self._program.steps):
            self._foresee(step + self._steps_ahead)
            before = self._holdings.hits, self._holdings.misses, self._stall_ns
            yield self._machine.step_ns
            for layer in range(self._program.layers):
                yield from self._run_layer(step, layer)
            self._report(step, *before)

    def _run_layer(self, step: int, layer: int) -> Iterator[int | None]:
        tokens = self._program.experts_of(step, layer)
        yield self._machine.layer_ns
        self._take_inbox()
        runs = self._tell_holdings(LayerStarted(step, layer, list(tokens)))
        self._hint(step, layer + 1)
        while runs or not self._holdings.layer_done:
            if not runs:
                yield from self._wait()
                runs = self._take_inbox()
            for expert in runs[:1]:
                yield self._machine.expert_ns + tokens[expert] * self._machine.token_ns
                self._tell_holdings(Computed([expert]))
            runs = runs[1:] + (self._take_inbox() if self._machine.hears_between_experts else [])
        self._tell_holdings(LayerEnded())

    def _wait(self) -> Iterator[int | None]:
        if not self._inbox:
            began_ns = self._clock.now_ns
            yield None
            self._stall_ns += self._clock.now_ns - began_ns

    def _take_inbox(self) -> list[int]:
        """The experts that can be computed because of what the loader said."""
        inbox, self._inbox = self._inbox, []
        return [expert for message in inbox for expert in self._tell_holdings(message)]

    def _tell_holdings(self, event: HoldingsEvent) -> list[int]:
        runs: list[int] = []
        for action in self._holdings.handle(event):
            if isinstance(action, Run):
                runs += [expert for expert, _ in action.experts]
            else:
                self._tell_loader(action)
        return runs

    def _tell_loader(self, message: Any, delay_ns: int = 0) -> None:
        self._clock.after(delay_ns + self._machine.message_ns, lambda: self._loader.hear(message))

    # What is foretold, and what is reported

    def _hint(self, step: int, layer: int) -> None:
        if self._hints is None or layer >= self._program.layers:
            return
        first = layer * self._program.experts
        scores = np.zeros(self._program.layers * self._program.experts, dtype=np.uint8)
        scores[self._hints.of(step)] = CERTAIN
        self._tell_loader(Hint(step, layer, scores[first : first + self._program.experts].tobytes()))

    def _foresee(self, step: int) -> None:
        if self._predictor is None or step >= self._program.steps:
            return
        from ...workers.predictor.forecaster import scores

        plan = Plan(step, scores(self._predictor.forecast(self._program.forecast(step))))
        self._tell_loader(plan, self._machine.forecast_ns)

    def _report(self, step: int, hits: int, misses: int, stall_ns: int) -> None:
        counts = self._holdings.hits - hits, self._holdings.misses - misses, self._stall_ns - stall_ns
        used = self._program.used(step, *counts)
        self._tell_loader(used)
        if self._predictor is not None:
            self._predictor.learn(used)


class _Loader:
    """The loader process: one thing after the other."""

    def __init__(self, ledger: Ledger, machine: Machine, clock: VirtualClock, reach_compute: Any) -> None:
        self.ledger = ledger
        self._machine, self._clock, self._reach_compute = machine, clock, reach_compute
        self._link = VirtualLink(machine, clock, lambda slot: self.hear(FillDone(slot)))
        self._free_at_ns = 0

    def hear(self, event: LedgerEvent) -> None:
        self._free_at_ns = max(self._clock.now_ns, self._free_at_ns) + self._machine.decide_ns
        self._clock.after(self._free_at_ns - self._clock.now_ns, lambda: self._decide(event))

    def _decide(self, event: LedgerEvent) -> None:
        for action in self.ledger.handle(event):
            match action:
                case StartFill():
                    self._link.start(action.slot, action.urgent)
                case PromoteFill():
                    self._link.promote(action.slot)
                case _:
                    self._clock.after(self._machine.message_ns, lambda message=action: self._reach_compute(message))
