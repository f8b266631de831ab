"""Runs the scheduler's steps over units: rows leave, units join, one forward, one token a row. It uses no sockets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from ...errors import EngineError, RequestError
from ...ipc.messages import DropUnit, ErrorFacts, KeepPrefix, RequestRow, RunStep, Split, Stepped, StepRouting
from ...ipc.stage.entry import is_short_of_memory
from ..model.encoder_decoder import new_unit
from ..model.images import read_images
from ..model.step_input import StepInput
from ..model.unit import RowAbilities, Unit
from .details import DetailCollector
from .device.base import Device
from .experts.hints import SILENT, Hinter
from .experts.residency import FeedCounts, Residency
from .experts.routing import RoutingCollector
from .lockstep.lockstep import Lockstep
from .lockstep.unit import LockstepUnit
from .oom_limits import OomLimits
from .prefixes import PrefixOrder, PrefixStore
from .sampling.failure import RowFailed
from .sampling.sampler import Chooser, sample

Choices = list[int | RowFailed | None]
"""For each row of a step its next token, or why it cannot go on, or None while its prefill goes on."""


class Executor:
    """The units of this process, and the operations on them."""

    def __init__(
        self,
        model: Any,
        abilities: RowAbilities,
        routing: RoutingCollector,
        residency: Residency,
        clock_ns: Callable[[], int],
        choose: Chooser = sample,
        hinter: Hinter | None = None,
        attachments: Path | None = None,
        device: Device | None = None,
        lockstep: Lockstep | None = None,
    ) -> None:
        """`lockstep`: that of the model's layers; None if rows cannot run in lockstep."""
        self._model, self._abilities, self._attachments = model, abilities, attachments
        self._device, self._lockstep = device, lockstep
        self._routing, self._residency = routing, residency
        self._clock_ns, self._choose, self._hinter = clock_ns, choose, hinter
        self._units: dict[int, Unit] = {}
        self._prefixes = PrefixStore()
        self.tokens_done = 0
        """Tokens chosen."""
        self.prefill_tokens = 0
        """Tokens of prompts computed, and of outputs that are prefilled again."""
        self._oom_limits = OomLimits()
        self._details = DetailCollector(routing)
        self._moved_ns = 0
        """Time spent on moving rows since the last step ended."""

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV caches of all units, and of the kept prefixes."""
        return sum(unit.kv_bytes for unit in self._units.values()) + self._prefixes.kv_bytes

    def forget_all(self) -> None:
        """Drop every unit, because their scheduler ended."""
        self._units.clear()
        self._prefixes.clear()

    @torch.inference_mode()
    def change_prefixes(self, order: PrefixOrder) -> None:
        """Keep blocks of a row that has run, or drop blocks."""
        if isinstance(order, KeepPrefix):
            self._prefixes.keep(order, self._unit(order.unit))
        else:
            self._prefixes.drop(order)

    def forget(self, order: DropUnit) -> None:
        """Drop one unit and its cache."""
        self._units.pop(order.unit, None)

    def split(self, order: Split) -> None:
        """Move rows to a new unit."""
        started_ns = self._clock_ns()
        self._units[order.into] = self._unit(order.unit).split(order.rows)
        self._moved_ns += self._clock_ns() - started_ns

    @torch.inference_mode()
    def run(self, step: RunStep) -> tuple[Stepped, StepRouting | None]:
        """Run one step; return its result and its routing, None if the step was recomputed in parts.

        Rows that cannot go on are in `Stepped.failed` and have left the unit. Raises ComputeStopped if the process is
        asked to end, EngineError for an unknown unit or a lost device.
        """
        started_ns, before = self._clock_ns(), self._residency.counts
        self._residency.begin_step(step.number)
        if self._hinter is not None:
            self._hinter.begin_step(step.number if step.predict else SILENT)
        rows = self._row_numbers(step)
        try:
            unit = self._prepare(step)
        except torch.OutOfMemoryError as error:  # rows that move take memory twice
            chosen, routing = self._rescue(step, error), None
        else:
            chosen, routing = self._attempt(step, unit, before, rows)
        tokens, failed = self._settle(self._units[step.unit], rows, chosen)
        self.tokens_done += len(tokens)
        return self._report(step, tokens, failed, started_ns, self._residency.counts - before), routing

    def _row_numbers(self, step: RunStep) -> list[int]:
        """Return the numbers of a step's rows, in the order of its unit."""
        stay = [] if step.admit else [row for row in self._unit(step.unit).numbers if row not in step.drop]
        joining = [row for unit in step.join for row in self._unit(unit).numbers]
        return [row.number for row in step.admit] or stay + joining

    def _attempt(
        self, step: RunStep, unit: Unit, before: FeedCounts, rows: list[int]
    ) -> tuple[Choices, StepRouting | None]:
        try:
            chosen = self._run_unit(step, unit, step.admit)
            if isinstance(unit, LockstepUnit) and not unit.has_whole_routing:
                return self._retry_failed(step, unit, rows, chosen), None
            return chosen, self._routing.step_routing(step.number, self._residency.counts - before)
        except Exception as error:  # noqa: BLE001 - whatever one row causes, the others of its unit must go on
            return self._rescue(step, error), None

    def _run_unit(self, step: RunStep, unit: Unit, admit: list[RequestRow]) -> Choices:
        """Run one forward, and note the details of its rows.

        Returns a token for each row if no chunk of its prefill is left.
        """
        logits = self._forward(unit, admit)
        chosen: Choices = [None] * len(unit.numbers) if unit.filling else [*self._choose(step, unit, logits)]
        self._details.collect(unit, logits, chosen)
        return chosen

    def _retry_failed(self, step: RunStep, unit: LockstepUnit, rows: list[int], chosen: Choices) -> Choices:
        """Run rows that failed alone once more; return the choices for all `rows`, in their order."""
        by_row = dict(zip(unit.numbers, chosen, strict=True))
        for row, _ in unit.take_failed():
            (by_row[row.number],) = self._run_part(step, [row], unit)
        return [by_row[number] for number in rows]

    def _report(
        self, step: RunStep, tokens: dict[int, int], failed: dict[int, ErrorFacts], started_ns: int, counts: FeedCounts
    ) -> Stepped:
        moved_ns, self._moved_ns = self._moved_ns, 0
        at_most, self._oom_limits = self._oom_limits.at_most, OomLimits()
        return Stepped(
            number=step.number,
            unit=step.unit,
            rows=list(tokens),
            tokens=list(tokens.values()),
            failed=failed,
            busy_ns=self._clock_ns() - started_ns,
            stall_ns=counts.stall_ns,
            kv_bytes=self.kv_bytes,
            experts=counts.hits + counts.misses,
            misses=counts.misses,
            moved_ns=moved_ns,
            at_most=at_most,
            details={row: found for row, found in self._details.take().items() if row not in failed},
        )

    def _prepare(self, step: RunStep) -> Unit:
        if step.admit:
            self._units[step.unit] = self._new_unit(step)
            return self._units[step.unit]
        unit, started_ns = self._unit(step.unit), self._clock_ns()
        unit.drop(step.drop)
        for other in step.join:
            unit.join(self._unit(other))
            del self._units[other]
        self._moved_ns += self._clock_ns() - started_ns
        return unit

    def _new_unit(self, step: RunStep) -> Unit:
        if step.batch_invariant:
            if self._lockstep is None:
                raise EngineError("rows cannot be batch-invariant on this device", "compute", "Report this as a bug")
            return LockstepUnit(self._model.config, lockstep=self._lockstep)
        where = "cpu" if self._device is None else self._device.torch_device
        return new_unit(self._model.config, self._abilities, where)

    def _unit(self, number: int) -> Unit:
        if number not in self._units:
            raise EngineError(f"step for unit {number}, which does not exist", "compute", "Report this as a bug")
        return self._units[number]

    def _forward(self, unit: Unit, admit: list[RequestRow]) -> torch.Tensor:
        inputs = self._prefill(unit, admit) if admit else unit.prepare_step()
        if inputs.is_prefill:
            self.prefill_tokens += len((inputs.source_tokens or inputs.tokens).token_ids)
        self._routing.begin(inputs.tokens, inputs.source_tokens)
        return unit.run(self._model, inputs)

    def _prefill(self, unit: Unit, rows: list[RequestRow]) -> StepInput:
        images = [read_images(self._model, row, self._attachments) for row in rows]
        return unit.prepare_prefill(rows, images, [self._prefixes.prefix(row) for row in rows])

    def _rescue(self, step: RunStep, error: Exception) -> Choices:
        """Recompute the rows of a failed step in smaller parts, so that only the row that causes the error fails."""
        rows = self._drop_units(step)
        self._oom_limits.record_failure(rows, error)
        survivors = self._units[step.unit] = self._new_unit(step)
        return self._run_parts(step, rows, survivors, error)

    def _drop_units(self, step: RunStep) -> list[RequestRow]:
        """Drop the units of a step, to free their memory, and return its rows."""
        units = [self._units.pop(number) for number in (step.unit, *step.join) if number in self._units]
        rows = [row for unit in units for row in unit.whole_rows()]
        for unit in units:
            unit.clear()
        return step.admit or rows

    def _run_parts(self, step: RunStep, rows: list[RequestRow], survivors: Unit, error: Exception) -> Choices:
        """Run parts of `rows`, which failed together with `error`; rows that go on join `survivors`."""
        if self._device is not None:
            self._device.require_usable()
        if len(rows) == 1:
            return [_failure(error)]
        error.__traceback__ = None  # a traceback keeps the tensors of all frames alive
        return [chosen for part in _parts(rows, error) for chosen in self._run_part(step, part, survivors)]

    def _run_part(self, step: RunStep, rows: list[RequestRow], survivors: Unit) -> Choices:
        """Prefill rows in a unit of their own, all chunks of a single one; they join `survivors`."""
        unit, part = self._new_unit(step), msgspec.structs.replace(step, drop=[], join=[], admit=rows)
        try:
            chosen = self._run_unit(part, unit, rows)
            while unit.filling:
                chosen = self._run_unit(part, unit, [])
        except Exception as error:  # noqa: BLE001 - one of these rows causes it
            failure = error
            self._oom_limits.record_failure(rows, error)
        else:
            self._oom_limits.record_success(rows)
            survivors.join(unit)
            return chosen
        return self._run_parts(step, rows, survivors, failure)

    def _settle(self, unit: Unit, rows: list[int], chosen: Choices) -> tuple[dict[int, int], dict[int, ErrorFacts]]:
        outcome = dict(zip(rows, chosen, strict=True))
        failed = {row: ErrorFacts.of(choice) for row, choice in outcome.items() if isinstance(choice, RowFailed)}
        tokens = {row: choice for row, choice in outcome.items() if isinstance(choice, int)}
        unit.drop([row for row in failed if row in unit.numbers])
        if not unit.filling:
            unit.append([tokens[row] for row in unit.numbers])
        return tokens, failed


def _parts(rows: list[RequestRow], error: Exception) -> list[list[RequestRow]]:
    """Split rows in halves if memory was short, else into single rows."""
    if not isinstance(error, torch.OutOfMemoryError):
        return [[row] for row in rows]
    middle = len(rows) // 2
    return [rows[:middle], rows[middle:]]


def _failure(error: Exception) -> RowFailed:
    if isinstance(error, RowFailed):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        remedy = "Send a shorter prompt, or give the engine less expert_memory or kv_memory"
        return RowFailed("does not fit the memory of the device, even alone", "step", remedy)
    if is_short_of_memory(error):
        remedy = "Send it again later or with a shorter prompt, or give the engine less expert_memory or kv_memory"
        return RowFailed("found no memory in the machine, even alone", "step", remedy)
    if isinstance(error, RequestError):
        return RowFailed(error.what, error.where, error.remedy)
    return RowFailed(f"{type(error).__name__}: {error}", "step", "Send the request again; if it fails again, report it")
