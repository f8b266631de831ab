"""Discrete-event simulation of a cluster: the real gateway core and routing rules, pretended replicas."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import msgspec
import numpy as np

from ....ipc.messages import Finished, FromClient, Refused, Submit, ToClient, Welcome
from ...replay.virtual_loader import VirtualClock
from ..gateway.events import (
    FromFront,
    FromReplica,
    GatewayEvent,
    ReplicaJoined,
    ReplicaLost,
    SendToClient,
    StatePublished,
)
from ..gateway.state import Gateway
from ..routing.router import Router
from ..routing.rules import DEFAULT_SLACK, make_rule
from .machine import ReplicaMachine
from .virtual_replica import SECOND_NS, ReplicaCounts, VirtualReplica
from .workload import Workload

CLIENT = b"client"


class SimulatedLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The load, and how it is routed."""

    replicas: int
    requests: int
    rate: float = 0.0
    """Requests a second, at random times (Poisson); 0: all at the beginning."""
    rule: str = "experts"
    slack: int = DEFAULT_SLACK
    seed: int = 0
    learn_every: int = 4
    warm_up: int = 0
    """Requests, besides the others and before them, that fill slots and teach the gateway; they are not counted."""


class SimulatedOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one simulation."""

    replicas: int
    rule: str
    seconds: float
    tokens: int
    """Output tokens, those that were computed again included."""
    hits: int
    loads: int
    moved: int
    """Requests that went on at another replica."""
    ended: int
    first_token_s: tuple[float, float]
    total_s: tuple[float, float]
    """Median and 95th percentile, from acceptance."""
    imbalance: float
    """Requests of the busiest replica ÷ the mean."""
    stall_share: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def hit_rate(self) -> float:
        return self.hits / max(self.hits + self.loads, 1)

    @property
    def loads_per_token(self) -> float:
        return self.loads / max(self.tokens, 1)


def simulate(workload: Workload, machine: ReplicaMachine, load: SimulatedLoad) -> SimulatedOutcome:
    """Run all requests to their end and return the figures."""
    return _Simulator(workload, machine, load).run()


class _Simulator:
    def __init__(self, workload: Workload, machine: ReplicaMachine, load: SimulatedLoad) -> None:
        self._workload, self._machine, self._load = workload, machine, load
        self._clock, self._rng = VirtualClock(), Random(load.seed)
        router = Router(make_rule(load.rule, load.seed), load.slack)
        self._gateway = Gateway(router, queue_limit=load.warm_up + load.requests + 1, learn_every=load.learn_every)
        self._counts = ReplicaCounts()
        self._replicas: dict[str, VirtualReplica] = {}
        self._names = 0
        self._ends: list[Finished] = []
        self._refused = 0
        self._is_warm = load.warm_up == 0
        self._begun_ns = self._last_ns = 0
        facts = {"model": "", "vocabulary": 1 << 30, "context": 1 << 30, "eos_ids": [], "queue_limit": load.requests}
        self._facts = Welcome(**facts, batch_size=machine.batch_size)

    def run(self) -> SimulatedOutcome:
        for _ in range(self._load.replicas):
            self._start_replica()
        if self._load.warm_up:
            self._after(0.0, lambda: self._submit(*range(self._load.warm_up)))
        else:
            self._begin()
        self._clock.run()
        return self._outcome()

    def _begin(self) -> None:
        """Let the requests that count arrive, from now on."""
        self._begun_ns, self._ends, self._refused = self._clock.now_ns, [], 0
        self._counts.clear()
        arrival_s, numbers = 0.0, range(self._load.warm_up, self._load.warm_up + self._load.requests)
        if not self._load.rate:
            self._after(0.0, lambda: self._submit(*numbers))
            return
        for number in numbers:
            arrival_s += self._rng.expovariate(self._load.rate)
            self._after(arrival_s, lambda number=number: self._submit(number))

    def _after(self, delay_s: float, callback: object) -> None:
        self._clock.call_after(round(delay_s * SECOND_NS), callback)  # type: ignore[arg-type]

    def _handle(self, *events: GatewayEvent) -> None:
        for action in self._gateway.handle_all(events, self._clock.now_ns + 1):
            if isinstance(action, SendToClient):
                self._receive(action.message)
            else:
                name, message = action
                self._after(self._machine.message_s, lambda name=name, message=message: self._deliver(name, message))

    def _submit(self, *numbers: int) -> None:
        """Let requests arrive together."""
        self._handle(*(FromFront(CLIENT, self._message(number)) for number in numbers))

    def _message(self, number: int) -> Submit:
        request = self._workload.request(number)
        length = len(request.output_ids)
        return Submit(request_id=str(number), prompt_ids=request.prompt_ids, max_new_tokens=length)

    def _deliver(self, name: str, message: FromClient) -> None:
        replica = self._replicas.get(name)
        if replica is not None and replica.alive:
            replica.receive(message)

    def _answer(self, name: str, messages: Sequence[ToClient]) -> None:
        self._after(self._machine.message_s, lambda: self._handle(*(FromReplica(name, each) for each in messages)))

    def _receive(self, message: ToClient) -> None:
        if isinstance(message, Finished):
            self._ends.append(message)
        elif isinstance(message, Refused):  # too many replicas died with it
            self._refused += 1
        else:
            return
        self._last_ns = self._clock.now_ns
        if not self._is_warm and len(self._ends) + self._refused == self._load.warm_up:
            self._is_warm = True
            self._begin()

    @property
    def _over(self) -> bool:
        return self._is_warm and len(self._ends) + self._refused >= self._load.requests

    def _start_replica(self) -> None:
        self._names += 1
        name = f"replica-{self._names}"
        args = self._machine, self._workload, self._clock, self._counts, self._answer
        self._replicas[name] = VirtualReplica(name, *args)
        self._handle(ReplicaJoined(name, self._facts))
        self._publish(name)
        if self._machine.fails_after_s > 0:
            self._after(self._rng.expovariate(1 / self._machine.fails_after_s), lambda: self._kill(name))

    def _publish(self, name: str) -> None:
        replica = self._replicas.get(name)
        if replica is not None and replica.alive and not self._over:
            self._handle(StatePublished(name, replica.state()))
            self._after(self._machine.publish_s, lambda: self._publish(name))

    def _kill(self, name: str) -> None:
        if self._over:
            return
        for message in self._replicas[name].die():
            self._handle(FromReplica(name, message))
        self._after(self._machine.noticed_after_s, lambda: self._notice(name))
        self._after(self._machine.repaired_after_s, self._start_replica)

    def _notice(self, name: str) -> None:
        del self._replicas[name]
        self._handle(ReplicaLost(name))

    def _outcome(self) -> SimulatedOutcome:
        counts, load = self._counts, self._load
        sent = sorted(counts.requests.values())
        return SimulatedOutcome(
            replicas=load.replicas,
            rule=load.rule,
            seconds=(self._last_ns - self._begun_ns) / SECOND_NS,
            tokens=counts.tokens,
            hits=counts.hits,
            loads=counts.loads,
            moved=self._gateway.moved,
            ended=len(self._ends),
            first_token_s=_percentiles([end.timings.first_token_ns for end in self._ends]),
            total_s=_percentiles([end.timings.total_ns for end in self._ends]),
            imbalance=sent[-1] * max(load.replicas, len(sent)) / sum(sent) if sent else 0.0,
            stall_share=counts.stall_s / max(counts.busy_s, 1e-12),
        )


def _percentiles(times_ns: list[int]) -> tuple[float, float]:
    """Return median and 95th percentile in seconds."""
    if not times_ns:
        return 0.0, 0.0
    median, high = np.percentile(np.asarray(times_ns) / SECOND_NS, [50, 95])
    return float(median), float(high)
