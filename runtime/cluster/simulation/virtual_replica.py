"""A simulated engine: rows, prefills and decode steps over expert slots, in virtual time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ....ipc.messages import Cancel, Finished, FromClient, Submit, Timings, ToClient, Tokens
from ...replay.virtual_loader import VirtualClock
from ..routing.fleet import ReplicaState, pack_held
from .expert_cache import make_expert_cache
from .machine import ReplicaMachine
from .workload import SimulatedRequest, Workload

NO_TIMES = Timings(queued_ns=0, first_token_ns=0, total_ns=0)
SECOND_NS = 1_000_000_000


@dataclass(slots=True)
class _Row:
    """A request in a replica; its next token to run is at `place`."""

    submit: Submit
    request: SimulatedRequest
    place: int = 0
    told: int = 0
    """Output tokens that the gateway knows of."""

    @property
    def done(self) -> int:
        """Return the number of output tokens so far."""
        return self.place - self.request.prompt_tokens + 1 if self.place else self.told


@dataclass
class ReplicaCounts:
    """Counts of all replicas together."""

    hits: int = 0
    loads: int = 0
    steps: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    stall_s: float = 0.0
    requests: dict[str, int] = field(default_factory=dict)
    """Requests that each replica was sent."""

    def clear(self) -> None:
        """Begin again."""
        self.hits = self.loads = self.steps = self.tokens = 0
        self.busy_s = self.stall_s = 0.0
        self.requests.clear()


class VirtualReplica:
    """One replica. `answer` gets its messages at the time at which it sends them."""

    def __init__(
        self,
        name: str,
        machine: ReplicaMachine,
        workload: Workload,
        clock: VirtualClock,
        counts: ReplicaCounts,
        answer: Callable[[str, Sequence[ToClient]], None],
    ) -> None:
        self.name, self.alive = name, True
        self._machine, self._workload, self._clock, self._counts, self._answer = (
            machine,
            workload,
            clock,
            counts,
            answer,
        )
        top_k = workload.request(0).routes.shape[2]
        self._cache = make_expert_cache(machine.policy, workload.layers, workload.experts, top_k, machine.slots)
        self._waiting: deque[_Row] = deque()
        self._rows: list[_Row] = []
        self._stepping = False
        self._hits = self._loads = 0

    def receive(self, message: FromClient) -> None:
        """Handle a message of the gateway."""
        match message:
            case Submit():
                request = self._workload.request(int(message.request_id.partition("-")[0]))  # as `_submit` counts them
                self._waiting.append(_Row(message, request, told=len(message.resume_ids)))
                self._counts.requests[self.name] = self._counts.requests.get(self.name, 0) + 1
                self._begin()
            case Cancel(request_id):
                self._waiting = deque(row for row in self._waiting if row.submit.request_id != request_id)
                self._rows = [row for row in self._rows if row.submit.request_id != request_id]
            case _:
                pass

    def die(self) -> list[Tokens]:
        """End; return the tokens that had been sent and are not lost."""
        self.alive = False
        return [self._tokens(row) for row in self._rows if row.done > row.told]

    def state(self) -> ReplicaState:
        """Return what the replica publishes."""
        layers, experts = self._workload.layers, self._workload.experts
        held = pack_held(self._cache.held())
        return ReplicaState(
            time_ns=self._clock.now_ns, layers=layers, experts=experts, held=held, hits=self._hits, misses=self._loads
        )

    def _begin(self) -> None:
        if self.alive and not self._stepping and (self._rows or self._waiting):
            self._stepping = True
            self._clock.call_after(0, self._step)  # with all that arrives at this moment

    def _step(self) -> None:
        """Run a step: the prefill of all that wait and find a row, or one token of every row."""
        room = self._machine.batch_size - len(self._rows)
        stepped = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        if stepped:
            self._rows += stepped
            for row in stepped:
                row.place = row.request.prompt_tokens + row.told
            tokens = sum(row.place for row in stepped)
            keys = self._workload.union([row.request.keys[: row.place] for row in stepped])
        else:
            stepped, tokens = list(self._rows), len(self._rows)
            keys = self._workload.union([row.request.keys[row.place] for row in stepped])
            for row in stepped:
                row.place += 1
        self._clock.call_after(round(self._count(keys, tokens) * SECOND_NS), lambda: self._end_step(stepped))

    def _count(self, keys: np.ndarray, tokens: int) -> float:
        """Count a step; return its time in seconds."""
        counts, total = self._cache.run(keys), self._counts
        time_s = self._machine.step_time_s(tokens, counts)
        self._hits, self._loads = self._hits + counts.hits, self._loads + counts.loads
        total.hits, total.loads, total.steps = total.hits + counts.hits, total.loads + counts.loads, total.steps + 1
        total.busy_s += time_s
        total.stall_s += time_s - self._machine.step_s - tokens * self._machine.token_s
        return time_s

    def _end_step(self, stepped: list[_Row]) -> None:
        if not self.alive:
            return
        going = [row for row in stepped if row in self._rows]
        self._counts.tokens += len(going)
        if answers := [answer for row in going if (answer := self._tell(row)) is not None]:
            self._answer(self.name, answers)
        self._stepping = False
        self._begin()

    def _tell(self, row: _Row) -> ToClient | None:
        """Return the first token or the end. Tokens between them are told at a death: the gateway decides nothing by
        them."""
        if row.done >= len(row.request.output_ids):
            self._rows.remove(row)
            return self._end(row)
        if row.told:
            return None
        message = self._tokens(row)
        row.told = row.done
        return message

    def _tokens(self, row: _Row) -> Tokens:
        return Tokens(row.submit.request_id, row.told, row.request.output_ids[row.told : row.done])

    def _end(self, row: _Row) -> Finished:
        return Finished(
            request_id=row.submit.request_id,
            token_ids=row.request.output_ids,
            finish_reason="length",
            timings=NO_TIMES,
            routed_experts=row.request.routes if row.submit.details.routed_experts else None,
        )
