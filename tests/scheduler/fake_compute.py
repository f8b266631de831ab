"""Compute without a model: it holds units as the real one does, objects to every order that makes no sense, and chooses
the next token of a row by a function of the row alone, so that a wrong batch cannot give the right tokens."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from expertflow.ipc.messages import (
    NO_DETAILS,
    Details,
    DropUnit,
    ErrorFacts,
    RequestRow,
    RowDetails,
    RunStep,
    Sampling,
    Split,
    Stepped,
    StepSize,
    TokenLogprob,
)
from expertflow.ipc.messages.to_compute import ComputeFromScheduler
from expertflow.tests.scheduler.fake_predictor import LAYERS
from expertflow.workers.scheduler.limits import ComputeInfo

VOCABULARY = 50


def next_token(token_ids: Sequence[int], generated: int, sampling: Sampling) -> int:
    """What this 'model' says after `token_ids`, of which the last `generated` were generated."""
    return zlib.crc32(repr((list(token_ids), generated, sampling.seed)).encode()) % VOCABULARY


def continuation(prompt: Sequence[int], count: int, sampling: Sampling) -> list[int]:
    """The first `count` tokens of an output that no stop id ends."""
    ids = list(prompt)
    for generated in range(count):
        ids.append(next_token(ids, generated, sampling))
    return ids[len(prompt) :]


def logprob_of(token_id: int, position: int) -> TokenLogprob:
    """What this 'model' says of a token at a position of its sequence."""
    return TokenLogprob(token_id, -position / 100, 1)


def routes_of(token_ids: Sequence[int]) -> np.ndarray:
    """Experts of tokens, uint16 [tokens, layers, 1]: here each token has the expert of its id, in every layer."""
    return np.repeat(np.array(token_ids, dtype="<u2")[:, None, None], LAYERS, axis=1)


@dataclass
class HeldRow:
    number: int
    token_ids: list[int]
    generated: int
    sampling: Sampling
    pad: int
    gone: bool = False
    cached: int = 0
    """Positions of a row with a cache of its own."""
    details: Details = NO_DETAILS


@dataclass
class HeldUnit:
    rows: list[HeldRow]
    length: int
    """Columns in its cache."""
    ran: int = 0
    batch_invariant: bool = False
    """Rows have a cache each: none is padded, and each can leave and join."""

    def live(self) -> list[HeldRow]:
        return [row for row in self.rows if not row.gone]

    def trim(self) -> None:
        spare = min((row.pad for row in self.rows), default=0)
        self.length -= spare
        for row in self.rows:
            row.pad -= spare


@dataclass(frozen=True)
class Ran:
    """What a step really ran: one entry a token."""

    step: RunStep
    token_ids: list[int]
    rows: list[int]
    positions: list[int]


@dataclass
class FakeCompute:
    """One start of compute. `fail_rows`: numbers of rows that break the next step they are in."""

    facts: ComputeInfo
    kv_bytes: int = 2**60
    fail_rows: set[int] = field(default_factory=set)
    units: dict[int, HeldUnit] = field(default_factory=dict)
    orders: deque[ComputeFromScheduler] = field(default_factory=deque)
    ran: list[Ran] = field(default_factory=list)
    last_number: int = -1
    stall_ns: int = 0
    moved_ns: int = 0
    """What a step costs more that other units' rows join."""
    at_most: StepSize | None = None
    """What the next step says of the room there is."""

    def receive(self, message: ComputeFromScheduler) -> None:
        self.orders.append(message)

    @property
    def steps_waiting(self) -> int:
        return sum(isinstance(order, RunStep) for order in self.orders)

    def run_next(self) -> Stepped | None:
        """Obey orders until one was a step, or none is left."""
        while self.orders:
            match self.orders.popleft():
                case RunStep() as step:
                    return self._run(step)
                case DropUnit(unit):
                    assert unit in self.units, f"forget of unit {unit}, which is not here"
                    del self.units[unit]
                case Split(unit, rows, into):
                    self._split(unit, rows, into)
        return None

    def used_bytes(self) -> int:
        per_row, per_position = self.facts.kv_bytes_per_row, self.facts.kv_bytes_per_position
        single = [row.cached for unit in self.units.values() if unit.batch_invariant for row in unit.rows]
        padded = [unit.length for unit in self.units.values() if not unit.batch_invariant for _ in unit.rows]
        return sum(length * per_position + per_row for length in single + padded)

    def _split(self, number: int, rows: list[int], into: int) -> None:
        assert into not in self.units
        unit = self.units[number]
        assert self.facts.joining or unit.batch_invariant, "rows of this model cannot move"
        assert set(rows) <= {row.number for row in unit.rows}
        part = HeldUnit([row for row in unit.rows if row.number in rows], unit.length, unit.ran)
        part.batch_invariant = unit.batch_invariant
        unit.rows = [row for row in unit.rows if row.number not in rows]
        self.units[into] = part
        for each in (unit, part):
            each.trim()
        self._check_memory()

    def _run(self, step: RunStep) -> Stepped:
        assert step.number > self.last_number, "steps must be numbered upwards"
        self.last_number = step.number
        unit = self._admit(step) if step.admit else self._prepare(step)
        assert unit.live(), "a step without rows"
        assert unit.batch_invariant == step.batch_invariant, "a unit changed its kind"
        self._check_memory()
        tokens = self._tokens(unit)
        failed = {number: ErrorFacts("request", "its row broke") for number in tokens if number in self.fail_rows}
        unit.rows = [row for row in unit.rows if row.number not in failed]
        if self.facts.moving or unit.batch_invariant:
            unit.trim()
        details = {row.number: self._details(row, step) for row in unit.live() if row.details != NO_DETAILS}
        kept = {number: token for number, token in tokens.items() if number not in failed}
        at_most, self.at_most = self.at_most, None
        return Stepped(
            number=step.number,
            unit=step.unit,
            rows=list(kept),
            tokens=list(kept.values()),
            failed=failed,
            busy_ns=1000 + self.moved_ns * bool(step.join),
            stall_ns=self.stall_ns,
            kv_bytes=self.used_bytes(),
            experts=10,
            moved_ns=self.moved_ns * bool(step.join),
            at_most=at_most,
            details=details,
        )

    def _admit(self, step: RunStep) -> HeldUnit:
        assert step.unit not in self.units, "a prefill starts a new unit"
        assert not step.drop and not step.join
        lengths = [len(row.token_ids) for row in step.admit]
        assert self.facts.padding or step.batch_invariant or len(set(lengths)) == 1, "this model cannot pad"
        width = max(lengths)
        rows = [_held(row, width) for row in step.admit]
        unit = self.units[step.unit] = HeldUnit(rows, width, batch_invariant=step.batch_invariant)
        self._note(step, [(row.number, i, token) for row in rows for i, token in enumerate(row.token_ids)])
        return unit

    def _prepare(self, step: RunStep) -> HeldUnit:
        unit = self.units[step.unit]
        self._drop(unit, step.drop)
        for number in step.join:
            self._join(unit, self.units.pop(number))
        unit.length += 1
        for row in unit.rows:
            row.cached += 1
        self._note(step, [(row.number, len(row.token_ids) - 1, row.token_ids[-1]) for row in unit.live()])
        return unit

    def _drop(self, unit: HeldUnit, numbers: list[int]) -> None:
        assert set(numbers) <= {row.number for row in unit.live()}, "a row to drop is not in the unit"
        if self.facts.moving or unit.batch_invariant:
            unit.rows = [row for row in unit.rows if row.number not in numbers]
            unit.trim()
        for row in unit.rows:
            row.gone = row.gone or row.number in numbers

    def _join(self, unit: HeldUnit, other: HeldUnit) -> None:
        assert unit.batch_invariant == other.batch_invariant, "rows of two kinds in one unit"
        assert self.facts.joining or unit.batch_invariant, "units of this model cannot join"
        length = max(unit.length, other.length)
        for each in (unit, other):
            for row in each.rows:
                row.pad += length - each.length
        unit.rows += other.rows
        unit.length = length
        self._check_memory()

    def _tokens(self, unit: HeldUnit) -> dict[int, int]:
        tokens = {}
        for row in unit.live():
            tokens[row.number] = next_token(row.token_ids, row.generated, row.sampling)
            row.token_ids.append(tokens[row.number])
            row.generated += 1
        return tokens

    def _details(self, row: HeldRow, step: RunStep) -> RowDetails:
        """What was asked about a row whose new token was just added."""
        *ids, token = row.token_ids
        prompt = ids[: len(row.token_ids) - row.generated]
        ran = [(p, t) for p, t, r in zip(*self._last_ran(), strict=True) if r == row.number]
        scored = row.details.prompt_logprobs is not None and bool(step.admit)
        return RowDetails(
            logprob=None if row.details.logprobs is None else logprob_of(token, len(ids)),
            prompt_logprobs=[*map(logprob_of, prompt[1:], range(1, len(prompt)))] if scored else [],
            routes=routes_of([t for _, t in ran]).tobytes() if row.details.routed_experts else b"",
            routes_start=ran[0][0],
            top_k=1,
        )

    def _last_ran(self) -> tuple[list[int], list[int], list[int]]:
        return self.ran[-1].positions, self.ran[-1].token_ids, self.ran[-1].rows

    def _note(self, step: RunStep, entries: list[tuple[int, int, int]]) -> None:
        self.ran.append(Ran(step, [e[2] for e in entries], [e[0] for e in entries], [e[1] for e in entries]))

    def _check_memory(self) -> None:
        assert self.used_bytes() <= self.kv_bytes, f"{self.used_bytes()} bytes of KV, the budget is {self.kv_bytes}"


def _held(row: RequestRow, width: int) -> HeldRow:
    length = len(row.token_ids)
    row_of = HeldRow(row.number, list(row.token_ids), row.generated, row.sampling, width - length, cached=length)
    row_of.details = row.details
    return row_of
