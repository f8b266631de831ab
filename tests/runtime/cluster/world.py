"""A world of pretended replicas around the gateway's core: they run requests, die, drain and come back at random."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from expertflow.ipc.messages import Accepted, Cancel, Finished, Refused, Sampling, Submit, Tokens, Welcome
from expertflow.ipc.messages.base import ErrorFacts
from expertflow.ipc.messages.to_client import Timings
from expertflow.runtime.cluster.gateway.events import (
    FromFront,
    FromReplica,
    GatewayEvent,
    ReplicaDraining,
    ReplicaJoined,
    ReplicaLost,
    SendToClient,
    SendToReplica,
    Tick,
)
from expertflow.runtime.cluster.gateway.state import Gateway
from expertflow.runtime.cluster.routing.router import Router
from expertflow.runtime.cluster.routing.rules import make_rule

FACTS = Welcome(model="/model", vocabulary=1000, context=4096, eos_ids=[2], queue_limit=100, batch_size=2)
NO_TIMES = Timings(queued_ns=0, first_token_ns=0, total_ns=0)


def token_at(seed: int, place: int) -> int:
    """Return the token that every replica draws for this seed at this place of an output."""
    return (seed * 7919 + place * 104729) % 997 + 3


def submit_of(number: int, tokens: int = 8, **more: object) -> Submit:
    fields = {"prompt_ids": [number % 5 + 3, 7], "sampling": Sampling(seed=number), "max_new_tokens": tokens}
    return Submit(request_id=f"r{number}", **(fields | more))  # type: ignore[arg-type]


@dataclass
class FakeReplica:
    """An engine that draws a token for a random request at each step."""

    running: dict[str, tuple[Submit, list[int]]] = field(default_factory=dict)
    busy: bool = False

    def receive(self, message: object) -> list[object]:
        match message:
            case Submit() if self.busy:
                return [Refused(message.request_id, ErrorFacts("busy", "full"))]
            case Submit():
                self.running[message.request_id] = message, list(message.resume_ids)
                return [Accepted(message.request_id)]
            case Cancel(request_id) if request_id in self.running:
                _, tokens = self.running.pop(request_id)
                return [end_of(request_id, tokens, "cancelled")]
        return []

    def step(self, rng: Random) -> list[object]:
        if not self.running:
            return []
        name = rng.choice(sorted(self.running))
        submit, tokens = self.running[name]
        answers: list[object] = []
        if len(tokens) < submit.max_new_tokens:
            tokens.append(token_at(submit.sampling.seed, len(tokens)))
            first = rng.randint(0, len(tokens) - 1)  # what is known may come again
            answers.append(Tokens(name, first, tokens[first:]))
        if len(tokens) >= submit.max_new_tokens:
            del self.running[name]
            answers.append(end_of(name, tokens, "length"))
        return answers


def end_of(name: str, tokens: list[int], reason: str) -> Finished:
    return Finished(request_id=name, token_ids=list(tokens), finish_reason=reason, timings=NO_TIMES)


class World:
    """The gateway, its replicas, and a client that notes everything it is sent."""

    def __init__(self, seed: int = 0, rule: str = "experts", **options: int) -> None:
        self.rng = Random(seed)
        self.gateway = Gateway(Router(make_rule(rule, seed)), **options)  # type: ignore[arg-type]
        self.replicas: dict[str, FakeReplica] = {}
        self.got: dict[str, list[int]] = {}
        self.ends: dict[str, list[Finished | Refused]] = {}
        self.sent: list[tuple[str, Submit]] = []
        self.draining: set[str] = set()
        self.now_ns = 1
        self._answers: list[tuple[str, object]] = []
        self._next = 0

    def handle(self, event: GatewayEvent) -> None:
        self.now_ns += 1_000_000
        for action in self.gateway.handle(event, self.now_ns):
            match action:
                case SendToReplica(name, message):
                    if isinstance(message, Submit):
                        assert name not in self.draining, "a draining replica got a request"
                        self.sent.append((name, message))
                    self._answers += [(name, answer) for answer in self.replicas[name].receive(message)]
                case SendToClient(_, message):
                    self._receive(message)

    def _receive(self, message: object) -> None:
        match message:
            case Tokens(request_id, offset, ids):
                assert offset == len(self.got.setdefault(request_id, [])), "a token came twice, or was left out"
                self.got[request_id] += ids
            case Finished() | Refused():
                self.ends.setdefault(message.request_id, []).append(message)

    def submit(self, submit: Submit) -> None:
        self.handle(FromFront(b"client", submit))

    def cancel(self, request_id: str) -> None:
        self.handle(FromFront(b"client", Cancel(request_id)))

    def join(self, name: str = "") -> str:
        self._next += 1
        name = name or f"replica-{self._next}"
        self.replicas[name] = FakeReplica()
        self.handle(ReplicaJoined(name, FACTS))
        return name

    def kill(self, name: str) -> None:
        del self.replicas[name]
        self.draining.discard(name)
        self._answers = [(other, answer) for other, answer in self._answers if other != name]
        self.handle(ReplicaLost(name))

    def drain(self, name: str) -> None:
        self.draining.add(name)
        self.handle(ReplicaDraining(name))

    def open_again(self, name: str) -> None:
        """Let a draining replica go on; answers about what it ran before may still be on their way."""
        self.draining.discard(name)
        self.handle(ReplicaJoined(name, FACTS))

    def step(self) -> None:
        """Let a random replica compute, or one answer arrive. Answers of one replica stay in order."""
        if self.replicas and self.rng.random() < 0.5:
            name = self.rng.choice(sorted(self.replicas))
            self._answers += [(name, answer) for answer in self.replicas[name].step(self.rng)]
        if self._answers:
            name = self.rng.choice(self._answers)[0]
            place = next(index for index, answer in enumerate(self._answers) if answer[0] == name)
            self.handle(FromReplica(*self._answers.pop(place)))  # type: ignore[arg-type]

    def run(self, steps: int = 20_000) -> None:
        """Run until every request has ended."""
        for _ in range(steps):
            if not self.gateway.book.open and not self._answers:
                return
            self.step()
            if self.rng.random() < 0.01:
                self.now_ns += 300_000_000
                self.handle(Tick())
        raise AssertionError(f"{len(self.gateway.book.open)} requests never end")
