"""A unit whose rows never share a tensor: each row is a unit of its own, and all step in lockstep (I1d).

So no row is ever padded, and rows join and leave as entries of a list, whatever the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from ....ipc.messages import RequestRow
from ...model.cache_blocks import RowPrefix
from ...model.encoder_decoder import new_unit
from ...model.images import RowImages
from ...model.processors import TokenHistory
from ...model.step_input import StepInput, StepTokens
from ...model.unit import RowAbilities, Unit, UnitError
from ...model.unit_rows import UnitRow
from ..experts.routing import RowRoutes, RowWatch
from .lockstep import Lockstep


@dataclass(frozen=True)
class LockstepInput:
    """Input of one step: one forward for each row. No position is a pad."""

    parts: list[StepInput]

    @property
    def tokens(self) -> StepTokens:
        """Return the tokens of all rows."""
        return _concatenate([part.tokens for part in self.parts])

    @property
    def source_tokens(self) -> StepTokens | None:
        """Return the tokens of all rows that an encoder sees; None without one, or once its output is cached."""
        sources = [part.source_tokens for part in self.parts if part.source_tokens is not None]
        return _concatenate(sources) if sources else None

    @property
    def is_prefill(self) -> bool:
        """Return whether prompts are read; all rows of a step are at the same."""
        return any(part.is_prefill for part in self.parts)


@dataclass(eq=False)
class LockstepRow:
    """One row: a unit that holds nothing else, and output of an earlier unit that it has yet to take in."""

    unit: Unit
    pending: deque[int] = field(default_factory=deque)
    is_whole: bool = False
    """Its whole prefill runs in one step, whatever its chunks."""
    forwards: int = 0
    """Forwards that the last step took."""

    def prepare_prefill(self, row: RequestRow, images: RowImages | None, prefix: RowPrefix) -> StepInput:
        """Return the prefill of the prompt. Output that the row brings along follows one token at a time, in `run`.

        A single prefill of prompt and output would give other bits than the decode steps did.
        """
        prompt = len(row.token_ids) - row.generated
        self.pending.extend(row.token_ids[prompt:])
        begun = msgspec.structs.replace(row, token_ids=row.token_ids[:prompt], generated=0)
        return self.unit.prepare_prefill([begun], [images], [prefix])

    def run(self, model: Any, step: StepInput) -> Tensor:
        """Run the step, and more for chunks and tokens that are pending; return the last logits [1, vocabulary].

        A row of a unit of several runs all its chunks; a single one runs one, and no pending token before the last.
        """
        logits, self.forwards = self.unit.run(model, step), 1
        while self.is_whole if self.unit.filling else self.pending:
            if not self.unit.filling:
                self.unit.append([self.pending[0]])
                self.pending.popleft()
            logits = self.unit.run(model, self.unit.prepare_step())
            self.forwards += 1
        return logits

    def to_request(self) -> RequestRow:
        """Return the row as another unit would prefill it."""
        (row,) = self.unit.whole_rows()
        ids, generated = [*row.token_ids, *self.pending], row.generated + len(self.pending)
        return msgspec.structs.replace(row, token_ids=ids, generated=generated)


@dataclass
class LockstepUnit(Unit):
    """Unit whose rows run in lockstep. Of its base it needs no cache, and no abilities of the model's rows.

    A step may fail for some rows alone: they have left the unit then (`take_failed`).
    """

    lockstep: Lockstep = field(kw_only=True)
    """That of the model's layers."""
    has_whole_routing: bool = True
    """False if the last step ran some rows more than once, or not to the end: its routing is of no use."""
    routes: dict[int, RowRoutes] = field(default_factory=dict)
    """Routes of the last step, for rows that ask for `routed_experts`."""
    _own: list[LockstepRow] = field(default_factory=list)
    _failed: list[tuple[RequestRow, Exception]] = field(default_factory=list)

    @property
    def filling(self) -> bool:
        return any(own.unit.filling for own in self._own)

    @property
    def rows(self) -> list[UnitRow]:
        return [row for own in self._own for row in own.unit.rows]

    @property
    def histories(self) -> list[TokenHistory]:
        return [history for own in self._own for history in own.unit.histories]

    @property
    def kv_bytes(self) -> int:
        return sum(own.unit.kv_bytes for own in self._own)

    def prepare_prefill(
        self,
        rows: Sequence[RequestRow],
        images: Sequence[RowImages | None] = (),
        prefixes: Sequence[RowPrefix] = (),
    ) -> Any:
        """Return the first step of a new unit, a `LockstepInput`; see `Unit.prepare_prefill`."""
        if self._own or not rows:
            raise UnitError("only an empty unit is prefilled, with rows", "unit")
        whole = len(rows) > 1
        self._own = [LockstepRow(new_unit(self.config, RowAbilities(), self.device), is_whole=whole) for _ in rows]
        images, prefixes = images or [None] * len(rows), prefixes or [RowPrefix()] * len(rows)
        parts = zip(self._own, rows, images, prefixes, strict=True)
        return LockstepInput([own.prepare_prefill(row, shown, prefix) for own, row, shown, prefix in parts])

    def prepare_step(self) -> Any:
        """Return the next step, a `LockstepInput`; see `Unit.prepare_step`."""
        if not self._own:
            raise UnitError("the unit has no cached rows to step", "unit", "Prefill its rows in a new unit")
        return LockstepInput([own.unit.prepare_step() for own in self._own])

    def run(self, model: Any, step: Any) -> Tensor:
        """Run a `LockstepInput`; return logits [rows, vocabulary] of the rows that did not fail.

        Raises the first error if all rows fail, and the error of an experts layer, which all rows share.
        """
        forwards = [partial(own.run, model, part) for own, part in zip(self._own, step.parts, strict=True)]
        watch = self._watch_routes(step)
        outcomes = self.lockstep.run(forwards, watch and watch.add)
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if len(errors) == len(outcomes):
            raise errors[0]
        self.has_whole_routing = not errors and all(own.forwards == 1 for own in self._own)
        ended = list(zip(self._own, outcomes, strict=True))
        self.routes = {} if watch is None else self._routes_of(watch, outcomes)
        self._failed = [(own.to_request(), error) for own, error in ended if isinstance(error, Exception)]
        self._own = [own for own, outcome in ended if isinstance(outcome, Tensor)]
        return torch.cat([outcome for outcome in outcomes if isinstance(outcome, Tensor)])

    def prompt_logits(self, number: int) -> tuple[int, Iterator[Tensor]]:
        (own,) = self._select([number])
        return own.unit.prompt_logits(number)

    def release_prompts(self) -> None:
        for own in self._own:
            own.unit.release_prompts()

    def _watch_routes(self, step: LockstepInput) -> RowWatch | None:
        """Return what collects the routes of each row, None if none asks for them."""
        if not any(row.details.routed_experts for row in self.rows):
            return None
        return RowWatch([part.tokens.positions[0] for part in step.parts])

    def _routes_of(self, watch: RowWatch, outcomes: list[Tensor | Exception]) -> dict[int, RowRoutes]:
        rows = enumerate(zip(self.rows, outcomes, strict=True))
        wanted = [(row, i) for i, (row, end) in rows if row.details.routed_experts and isinstance(end, Tensor)]
        return {row.number: watch.routes_of(i) for row, i in wanted}

    def take_failed(self) -> list[tuple[RequestRow, Exception]]:
        """Return the rows that failed in the last step, as another unit would prefill them, and their errors, once."""
        failed, self._failed = self._failed, []
        return failed

    def whole_rows(self) -> list[RequestRow]:
        return [own.to_request() for own in self._own]

    def append(self, tokens: Sequence[int]) -> None:
        if len(tokens) != len(self._own):
            raise UnitError(f"{len(tokens)} tokens for {len(self._own)} rows", "unit")
        for own, token in zip(self._own, tokens, strict=True):
            own.unit.append([token])

    def take(self, numbers: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        self._own = self._select(numbers)

    def cut(self, number: int, begin: int, end: int) -> Cache:
        (own,) = self._select([number])
        return own.unit.cut(number, begin, end)

    def split(self, numbers: Sequence[int]) -> LockstepUnit:
        """Move these rows to a new unit, in this order."""
        moved = self._select(numbers)
        self._own = [own for own in self._own if own not in moved]
        return LockstepUnit(self.config, self.abilities, self.device, lockstep=self.lockstep, _own=moved)

    def join(self, other: Unit) -> None:
        """Append the rows of `other`, which is empty afterwards. Raises UnitError if they do not run in lockstep."""
        if not other.rows:
            return
        if not isinstance(other, LockstepUnit):
            raise UnitError("rows with and without batch_invariant cannot share a unit", "unit", "Report this as a bug")
        if set(self.numbers) & set(other.numbers):
            raise UnitError(f"rows {other.numbers} are already among {self.numbers}", "unit")
        self._own += other._own
        other.clear()

    def _select(self, numbers: Sequence[int]) -> list[LockstepRow]:
        own = dict(zip(self.numbers, self._own, strict=True))
        if any(number not in own for number in numbers) or len(set(numbers)) != len(numbers):
            raise UnitError(f"rows {list(numbers)} are not rows of this unit ({self.numbers})", "unit")
        return [own[number] for number in numbers]

    def _clear(self) -> None:
        super()._clear()
        self._own = []

    def _new_cache(self) -> DynamicCache:
        return DynamicCache()


def _concatenate(parts: list[StepTokens]) -> StepTokens:
    """Return the tokens of rows without pads, one after the other."""
    return StepTokens(
        None,
        [token for part in parts for token in part.token_ids],
        [row for part in parts for row in part.rows],
        [position for part in parts for position in part.positions],
    )
