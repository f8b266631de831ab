"""Drive the cores alone (scheduler, ledger, holdings, predictor) through `handle`, without a process or a model.

What is counted is the processor time of our own code; experts arrive as soon as they are asked for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from expertflow.ipc.messages import (
    Finished,
    Hint,
    PredictStep,
    RunStep,
    Sampling,
    Stepped,
    StepPrediction,
    StepRouting,
    Submit,
)
from expertflow.workers.compute.experts.holdings import Computed, Holdings, LayerEnded, LayerStarted, Run
from expertflow.workers.loader.events import FillDone, PromoteFill, StartFill
from expertflow.workers.loader.ledger import Ledger
from expertflow.workers.predictor.base.forecaster import scores
from expertflow.workers.predictor.base.token_table import TokenTable
from expertflow.workers.scheduler import events
from expertflow.workers.scheduler.limits import ModelInfo, SchedulerLimits
from expertflow.workers.scheduler.state import SchedulerState


@dataclass(frozen=True)
class Shape:
    """Describe a decode step. Slots are `share` of all experts."""

    rows: int = 8
    layers: int = 8
    experts: int = 32
    top_k: int = 4
    share: float = 0.25


@dataclass
class Clock:
    """Processor time of this thread by part, in nanoseconds."""

    spent_ns: dict[str, int] = field(default_factory=dict)

    def time(self, part: str, work: Callable[..., Any], *arguments: Any) -> Any:
        started = time.thread_time_ns()
        result = work(*arguments)
        self.spent_ns[part] = self.spent_ns.get(part, 0) + time.thread_time_ns() - started
        return result


class Routes:
    """Routing of rows over steps: a token's experts are drawn by its id, a third of them anew each time."""

    def __init__(self, shape: Shape, seed: int = 0, vocabulary: int = 512) -> None:
        self._shape, self._rng, self._vocabulary = shape, np.random.default_rng(seed), vocabulary
        self._of_token = np.stack([self._draw() for _ in range(vocabulary)])

    def _draw(self) -> np.ndarray:
        """Draw routes, uint16 [layers, top_k], popular experts more often."""
        shape = self._shape
        weights = 1 / (1 + np.arange(shape.experts)) ** 0.7
        noise = self._rng.gumbel(size=(shape.layers, shape.experts)) + np.log(weights)
        return np.argsort(-noise, axis=1)[:, : shape.top_k].astype("<u2")

    def step(self) -> tuple[list[int], np.ndarray]:
        """Token ids, and uint16 [rows, layers, top_k]."""
        ids = self._rng.integers(self._vocabulary, size=self._shape.rows)
        routes = self._of_token[ids].copy()
        odd = self._rng.random(routes.shape[:2]) < 1 / 3
        routes[odd] = np.stack([self._draw() for _ in ids])[odd]
        return ids.tolist(), routes


class Residency:
    """Ledger and holdings, with transfers that end at once; hints as good as they are in practice."""

    def __init__(self, shape: Shape, clock: Clock) -> None:
        self._shape, self._clock = shape, clock
        slots = max(int(shape.layers * shape.experts * shape.share), shape.top_k)
        self._ledger = Ledger(slots, shape.layers, shape.experts, shape.top_k, fills_in_flight=4)
        self._holdings = Holdings(slots, shape.layers, shape.experts)
        self._rng = np.random.default_rng(1)
        self._fills: deque[int] = deque()
        self._inbox: deque[Any] = deque()
        self._table = TokenTable(shape.layers, shape.experts, shape.top_k)
        self.events = 0
        from expertflow.ipc.messages import ResidentTable

        self.handle(ResidentTable({}))

    def handle(self, event: Any) -> None:
        """Give the ledger an event, and end its transfers before anything else happens."""
        self.events += 1
        part = f"loader, {type(event).__name__}"
        for action in self._clock.time(part, self._ledger.handle, event):
            match action:
                case StartFill():
                    self._fills.append(action.slot)
                case PromoteFill():
                    pass
                case _:
                    self._inbox.append(action)

    def _hold(self, event: Any) -> list[int]:
        experts: list[int] = []
        for action in self._clock.time("holdings", self._holdings.handle, event):
            if isinstance(action, Run):
                experts += [expert for expert, _ in action.experts]
            else:
                self.handle(action)
        return experts

    def _arrivals(self) -> list[int]:
        experts: list[int] = []
        while self._fills or self._inbox:
            if self._fills:
                self.handle(FillDone(self._fills.popleft()))
            while self._inbox:
                experts += self._hold(self._inbox.popleft())
        return experts

    def step(self, number: int, ids: list[int], routes: np.ndarray) -> None:
        """Run one decode step [rows, layers, top_k] with its plan and hints."""
        rows = list(range(len(ids)))
        coming = PredictStep(step=number, token_ids=ids, rows=rows, positions=[number] * len(ids))
        forecast = self._clock.time("predictor", self._table.forecast, coming)
        self.handle(StepPrediction(number, self._clock.time("predictor", scores, forecast)))
        for layer in range(self._shape.layers):
            self._layer(number, layer, routes)
        used = StepRouting(
            step=number, token_ids=ids, rows=rows, positions=[number] * len(ids), top_k=self._shape.top_k,
            experts=routes.tobytes(), hits=0, misses=0, stall_ns=0,
        )  # fmt: skip
        self._clock.time("predictor", self._table.learn, used)
        self.handle(used)

    def _layer(self, number: int, layer: int, routes: np.ndarray) -> None:
        experts = np.unique(routes[:, layer]).tolist()
        ready = self._hold(LayerStarted(number, layer, experts))
        if layer + 1 < self._shape.layers:
            self.handle(self._hint(number, layer + 1, routes[:, layer + 1]))
        left = set(experts)
        while left:
            for expert in ready:
                left.discard(expert)
                self._hold(Computed([expert]))
            ready = self._arrivals()
        self._hold(LayerEnded())
        self._arrivals()

    def _hint(self, number: int, layer: int, routes: np.ndarray) -> Hint:
        chances = np.zeros(self._shape.experts, dtype=np.uint8)
        chances[self._rng.integers(self._shape.experts, size=self._shape.top_k)] = 90
        chances[routes[self._rng.random(routes.shape) < 0.8]] = 230
        return Hint(number, layer, chances.tobytes())


def residency_costs(shape: Shape, warm: int, steps: int) -> dict[str, float]:
    """Return microseconds by part, a token and layer."""
    clock = Clock()
    routes, residency = Routes(shape), Residency(shape, clock)
    for number in range(warm):
        residency.step(number, *routes.step())
    clock.spent_ns.clear()
    for number in range(warm, warm + steps):
        residency.step(number, *routes.step())
    return {part: spent / 1e3 / (steps * shape.rows * shape.layers) for part, spent in clock.spent_ns.items()}


class Line:
    """Drive a scheduler with `queued` requests behind `rows` running ones; every request takes `tokens` tokens."""

    def __init__(self, rows: int, queued: int, tokens: int, clock: Clock) -> None:
        facts = ModelInfo(
            model="", vocabulary=512, context=4096, eos_ids=[], layers=8, experts=32, kv_bytes_per_position=1
        )
        limits = SchedulerLimits(
            batch_size=rows, prefill_tokens=2048, queue_limit=10_000, kv_bytes=1 << 40, units="one", grouping="off"
        )
        self._state, self._clock, self._tokens = SchedulerState(facts, limits), clock, tokens
        self._now_ns, self._orders, self._ended = 0, deque[RunStep](), 0
        self._units: dict[int, list[int]] = {}
        self._tell(events.ComputeJoined(0))
        for number in range(rows + queued):
            submit = Submit(request_id=f"r{number}", prompt_ids=[1] * 16, max_new_tokens=tokens, sampling=Sampling())
            self._tell(events.ClientMessage(b"c", submit, self._now_ns))

    def _tell(self, event: events.SchedulerEvent) -> None:
        for action in self._clock.time("scheduler", self._state.handle, event):
            match action:
                case events.ToCompute(RunStep() as order):
                    self._orders.append(order)
                case events.Send(_, Finished()):
                    self._ended += 1
                case _:
                    pass

    def run(self, requests: int) -> int:
        """Until so many requests have ended; tokens made."""
        made, until = 0, self._ended + requests
        while self._ended < until:
            self._now_ns += 50_000_000
            self._tell(events.Tick(self._now_ns))
            self._clock.time("scheduler", self._state.wake_at_ns, self._now_ns)
            made += self._answer()
        return made

    def _answer(self) -> int:
        if not self._orders:
            return 0
        order = self._orders.popleft()
        rows = [row.number for row in order.admit] or list(self._rows_of(order))
        self._units[order.unit] = rows
        done = Stepped(
            number=order.number, unit=order.unit, rows=rows, tokens=[1] * len(rows), failed={}, busy_ns=1, stall_ns=0,
            kv_bytes=0, experts=0, moved_ns=0,
        )  # fmt: skip
        self._tell(events.StepDone(done, self._now_ns))
        return len(rows)

    def _rows_of(self, order: RunStep) -> Iterator[int]:
        for unit in (order.unit, *order.join):
            for row in self._units.pop(unit, []):
                if row not in order.drop:
                    yield row


def scheduler_cost(rows: int, queued: int, tokens: int = 16, requests: int = 64) -> float:
    """Return microseconds a token, while `queued` requests wait behind `rows` running ones and take their places."""
    clock = Clock()
    line = Line(rows, queued + requests, tokens, clock)
    clock.spent_ns.clear()
    made = line.run(requests)
    return clock.spent_ns["scheduler"] / 1e3 / made
