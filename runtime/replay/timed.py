"""Timed replay: the loader's real ledger and compute's real holdings, under a virtual clock.

Only their surroundings are simulated: kernels, the link, messages. As in the real compute
(workers/compute/experts/residency.py), messages of the loader are handled when a layer begins, after each expert, and
during a wait.
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
from .predictions import LayerHints, PredictionSource
from .steps import Program
from .virtual_loader import VirtualClock, VirtualLoader


class TimedOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """Counts as the real processes keep them, and times of the simulated machine."""

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
        """Return the share of the whole time that is stalls."""
        return self.stall_ns / max(self.total_ns, 1)


def replay_timed(
    program: Program,
    ledger: Ledger,
    slots: int,
    machine: Machine,
    *,
    timings: Timings | None = None,
    hints: LayerHints | None = None,
    predictions: PredictionSource | None = None,
) -> TimedOutcome:
    """Run all steps; `ledger` is a fresh one of `slots` slots. `timings` replace the machine's times of compute."""
    clock = VirtualClock()
    compute = _Compute(
        program, slots, machine, clock, timings or MachineTimings(machine, program.layers), hints, predictions
    )
    compute.loader = VirtualLoader(ledger, machine, clock, compute.on_message)
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
    """The compute process. Its thread yields the ns that it is busy, or None to wait for the loader."""

    loader: VirtualLoader

    def __init__(
        self,
        program: Program,
        slots: int,
        machine: Machine,
        clock: VirtualClock,
        timings: Timings,
        hints: LayerHints | None,
        predictions: PredictionSource | None,
    ) -> None:
        self._program, self._machine, self._clock = program, machine, clock
        self._timings, self._hints, self._predictions = timings, hints, predictions
        self.holdings = Holdings(slots, program.layers, program.experts)
        self.stall_ns = self.end_ns = 0
        self._inbox: list[HeldFromLoader] = []
        self._waiting = False
        self._thread = self._run()

    def start(self) -> None:
        self.loader.receive(ComputeJoined())
        self._handle(LoaderJoined())
        self._clock.call_after(0, self._resume)

    def on_message(self, message: HeldFromLoader) -> None:
        """Queue a message of the loader; compute handles it when it next checks its inbox."""
        self._inbox.append(message)
        if self._waiting:
            self._waiting = False
            self._clock.call_after(0, self._resume)

    def _resume(self) -> None:
        busy_ns = next(self._thread, -1)
        if busy_ns is None:
            self._waiting = True
        elif busy_ns >= 0:
            self._clock.call_after(busy_ns, self._resume)
        else:
            self.end_ns = self._clock.now_ns

    def _run(self) -> Iterator[int | None]:
        for step in range(self._program.steps):
            yield self._timings.pause_ns(step)
            self._receive()
            self._send_predictions(step)
            before = self.holdings.hits, self.holdings.misses, self.stall_ns
            yield self._timings.before_ns(step)
            for layer in range(self._program.layers):
                yield from self._run_layer(step, layer)
                yield self._timings.after_ns(step, layer)
            self._report(step, *before)

    def _run_layer(self, step: int, layer: int) -> Iterator[int | None]:
        tokens = self._program.experts_of(step, layer)
        self._receive()
        runs = self._handle(LayerStarted(step, layer, list(tokens)))
        self._hint(step, layer + 1)
        while runs or not self.holdings.layer_done:
            if not runs:
                yield from self._wait()
            for expert in runs[:1]:
                yield self._timings.expert_ns(step, layer, tokens[expert])
                self._handle(Computed([expert]))
            runs = runs[1:] + self._receive()
        self._handle(LayerEnded())

    def _wait(self) -> Iterator[int | None]:
        if not self._inbox:
            began_ns = self._clock.now_ns
            yield None
            self.stall_ns += self._clock.now_ns - began_ns

    def _receive(self) -> list[int]:
        """Handle the loader's messages; return the experts that may run because of them."""
        inbox, self._inbox = self._inbox, []
        return [expert for message in inbox for expert in self._handle(message)]

    def _handle(self, event: HoldingsEvent) -> list[int]:
        runs: list[int] = []
        for action in self.holdings.handle(event):
            if isinstance(action, Run):
                runs += [expert for expert, _ in action.experts]
            else:
                self._send_to_loader(action)
        return runs

    def _send_to_loader(self, message: Any, delay_ns: int = 0) -> None:
        self._clock.call_after(delay_ns + self._machine.message_ns, lambda: self.loader.receive(message))

    def _hint(self, step: int, layer: int) -> None:
        if self._hints is not None and layer < self._program.layers:
            scores = self._hints.scores(step, layer)
            if scores is not None:
                self._send_to_loader(Hint(step, layer, scores))

    def _send_predictions(self, step: int) -> None:
        for delay_ns, prediction in () if self._predictions is None else self._predictions.begin(step):
            self._send_to_loader(prediction, delay_ns)

    def _report(self, step: int, hits: int, misses: int, stall_ns: int) -> None:
        counts = self.holdings.hits - hits, self.holdings.misses - misses, self.stall_ns - stall_ns
        routing = self._program.step_routing(step, *counts)
        self._send_to_loader(routing)
        if self._predictions is not None:
            self._predictions.learn(routing)
