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
    DropPrefix,
    DropUnit,
    ErrorFacts,
    KeepPrefix,
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
    chunk: int = 0


@dataclass
class HeldUnit:
    rows: list[HeldRow]
    length: int
    """Columns in its cache."""
    ran: int = 0
    batch_invariant: bool = False
    """Rows have a cache each: none is padded, and each can leave and join."""
    filled: int = 0
    fill_to: int = 0
    """Of its only row, if that is prefilled in chunks."""

    @property
    def filling(self) -> bool:
        return self.filled < self.fill_to

    def live(self) -> list[HeldRow]:
        return [row for row in self.rows if not row.gone]

    def trim(self) -> None:
        spare = min((row.pad for row in self.rows), default=0)
        self.length -= spare
        for row in self.rows:
            row.pad -= spare


@dataclass(frozen=True)
class HeldBlock:
    """Some positions of a row, which depend on all ids up to their end."""

    token_ids: list[int]
    """Up to the end of the block."""
    size: int
    batch_invariant: bool


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
    blocks: dict[int, HeldBlock] = field(default_factory=dict)
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
                case KeepPrefix() as order:
                    self._keep(order)
                case DropPrefix(blocks):
                    for number in blocks:
                        del self.blocks[number]
        return None

    def used_bytes(self) -> int:
        per_row, per_position = self.facts.kv_bytes_per_row, self.facts.kv_bytes_per_position
        single = [row.cached for unit in self.units.values() if unit.batch_invariant for row in unit.rows]
        padded = [unit.length for unit in self.units.values() if not unit.batch_invariant for _ in unit.rows]
        kept = sum(block.size for block in self.blocks.values()) * per_position
        return sum(length * per_position + per_row for length in single + padded) + kept

    def _keep(self, order: KeepPrefix) -> None:
        unit = self.units[order.unit]
        assert self.facts.can_copy and order.blocks, "rows of this model cannot be copied"
        (row,) = [row for row in unit.rows if row.number == order.row]
        cached = row.cached if unit.batch_invariant else unit.length - row.pad
        for index, number in enumerate(order.blocks):
            end = order.begin + (index + 1) * order.size
            assert number not in self.blocks and not unit.filling and end <= cached
            self.blocks[number] = HeldBlock(row.token_ids[:end], order.size, unit.batch_invariant)
        self._check_memory()

    def _check_prefix(self, row: RequestRow, batch_invariant: bool) -> None:
        """The row's first ids are those of its blocks, and one at least is left to run."""
        end = 0
        for number in row.blocks:
            block = self.blocks[number]
            end += block.size
            assert block.batch_invariant == batch_invariant, "other bits than its own"
            begin = min(end, row.cached)
            assert len(block.token_ids) == end and block.token_ids[:begin] == row.token_ids[:begin], "of other ids"
        assert row.cached <= end and row.cached < len(row.token_ids) - row.generated * batch_invariant

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
        assert unit.live() or unit.filling, "a step without rows"
        assert unit.batch_invariant == step.batch_invariant, "a unit changed its kind"
        self._check_memory()
        tokens = {} if unit.filling else self._tokens(unit)
        broken = [row.number for row in unit.live() if row.number in self.fail_rows]
        failed = {number: ErrorFacts("request", "its row broke") for number in broken}
        unit.rows = [row for row in unit.rows if row.number not in failed]
        if self.facts.moving or unit.batch_invariant:
            unit.trim()
        asked = [row for row in unit.live() if row.details != NO_DETAILS]
        details = {row.number: self._details(row, step, unit.filling) for row in asked}
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
        rest = max(len(row.token_ids) - row.cached for row in step.admit)
        for row in step.admit:
            self._check_prefix(row, step.batch_invariant)
            assert step.batch_invariant or row.cached == max(0, len(row.token_ids) - rest), "columns are shared"
            assert not step.batch_invariant or not row.cached or row.cached % row.chunk == 0, "other bits than alone"
        rows = [_held(row, width) for row in step.admit]
        unit = self.units[step.unit] = HeldUnit(rows, width, batch_invariant=step.batch_invariant)
        first = step.admit[0]
        length = len(first.token_ids) - first.generated * step.batch_invariant
        if len(rows) == 1 and 0 < first.chunk < length - first.cached:
            assert self.facts.extending, "this model cannot extend a cache"
            unit.fill_to, unit.filled = length, first.cached
            self._fill(step, unit, first.chunk)
        else:
            begun = {row.number: row.cached for row in step.admit}
            ran = [(row.number, i, row.token_ids[i]) for row in rows for i in range(begun[row.number], row.cached)]
            self._note(step, ran)
        return unit

    def _fill(self, step: RunStep, unit: HeldUnit, chunk: int) -> None:
        """Run the next chunk of the unit's row; the last one takes along what a batch-invariant row has generated."""
        (row,) = unit.rows
        begin, unit.filled = unit.filled, min(unit.filled + chunk, unit.fill_to)
        end = unit.filled if unit.filling else len(row.token_ids)
        unit.length = row.cached = end
        self._note(step, [(row.number, begin + i, token) for i, token in enumerate(row.token_ids[begin:end])])

    def _prepare(self, step: RunStep) -> HeldUnit:
        unit = self.units[step.unit]
        assert step.continues == unit.filling, "a step that is not what its unit needs"
        if unit.filling:
            assert not step.drop and not step.join
            self._fill(step, unit, unit.rows[0].chunk)
            return unit
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
        assert not unit.filling and not other.filling, "a prefill that is not done"
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

    def _details(self, row: HeldRow, step: RunStep, is_filling: bool) -> RowDetails:
        """What was asked about a row, whose new token was just added unless its prompt is not at its end."""
        prompt = row.token_ids[: len(row.token_ids) - row.generated]
        ran = [(p, t) for p, t, r in zip(*self._last_ran(), strict=True) if r == row.number]
        scored = row.details.prompt_logprobs is not None and (bool(step.admit) or step.continues)
        told = [p + 1 for p, _ in ran if scored and p + 1 < len(prompt)]
        chosen = row.details.logprobs is not None and not is_filling
        return RowDetails(
            logprob=logprob_of(row.token_ids[-1], len(row.token_ids) - 1) if chosen else None,
            prompt_logprobs=[logprob_of(prompt[p], p) for p in told],
            prompt_start=ran[0][0] + 1,
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
    row_of.details, row_of.chunk = row.details, row.chunk
    return row_of
