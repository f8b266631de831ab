"""Runs the scheduler's steps over units: rows leave, units join, one forward, one token a row. Knows no socket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from ...errors import EngineError, RequestError
from ...ipc.messages import DropUnit, ErrorFacts, RequestRow, RunStep, Split, Stepped, StepRouting
from ..model.encoder_decoder import new_unit
from ..model.images import read_images
from ..model.step_input import StepInput
from ..model.unit import RowAbilities, Unit
from .device.base import Device
from .experts.hints import SILENT, Hinter
from .experts.residency import ComputeStopped, FeedCounts, Residency
from .experts.routing import RoutingCollector
from .oom_limits import OomLimits
from .sampling import RowFailed, choose_all

Chooser = Callable[[RunStep, Unit, torch.Tensor], list[int | RowFailed]]
"""The tokens of a step from its logits [rows, vocabulary], in the order of the unit's rows."""


def sample(step: RunStep, unit: Unit, logits: torch.Tensor) -> list[int | RowFailed]:
    """Choose by each row's own sampling parameters and generation settings."""
    return choose_all(logits, unit.samplings, unit.output_indices, unit.histories)


class Executor:
    """The units of this process and what can be done to them."""

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
    ) -> None:
        self._model, self._abilities, self._attachments = model, abilities, attachments
        self._device = device
        self._routing, self._residency = routing, residency
        self._clock_ns, self._choose, self._hinter = clock_ns, choose, hinter
        self._units: dict[int, Unit] = {}
        self.tokens_done = 0
        self._attempts = OomLimits()
        self._moved_ns = 0
        """Spent on moving rows since the last step ended."""

    @property
    def kv_bytes(self) -> int:
        """Of the caches of all units, now."""
        return sum(unit.kv_bytes for unit in self._units.values())

    def forget_all(self) -> None:
        """Drop every unit: their scheduler is gone."""
        self._units.clear()

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
        """One step and the routing it had; rows that cannot go on are in `Stepped.failed` and have left the unit."""
        started_ns, before = self._clock_ns(), self._residency.counts
        self._residency.begin_step(step.number)
        if self._hinter is not None:
            self._hinter.begin_step(step.number if step.predict else SILENT)
        rows = self._numbers(step)
        try:
            unit = self._prepare(step)
        except torch.OutOfMemoryError as error:  # rows that move take memory twice
            chosen, used = self._rescue(step, error), None
        else:
            chosen, used = self._attempt(step, unit, before)
        tokens, failed = self._settle(self._units[step.unit], rows, chosen)
        self.tokens_done += len(tokens)
        return self._report(step, tokens, failed, started_ns, self._residency.counts - before), used

    def _numbers(self, step: RunStep) -> list[int]:
        """Of the rows of a step, in the order of its unit."""
        stay = [] if step.admit else [row for row in self._unit(step.unit).numbers if row not in step.drop]
        joining = [row for unit in step.join for row in self._unit(unit).numbers]
        return [row.number for row in step.admit] or stay + joining

    def _attempt(
        self, step: RunStep, unit: Unit, before: FeedCounts
    ) -> tuple[list[int | RowFailed], StepRouting | None]:
        try:
            chosen = self._choose(step, unit, self._forward(unit, step))
            return chosen, self._routing.used(step.number, self._residency.counts - before)
        except ComputeStopped:
            raise
        except Exception as error:  # noqa: BLE001 - whatever one row provokes, the others of its unit must go on
            return self._rescue(step, error), None

    def _report(
        self, step: RunStep, tokens: dict[int, int], failed: dict[int, ErrorFacts], started_ns: int, counts: FeedCounts
    ) -> Stepped:
        moved_ns, self._moved_ns = self._moved_ns, 0
        at_most, self._attempts = self._attempts.at_most, OomLimits()
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
            moved_ns=moved_ns,
            at_most=at_most,
        )

    def _prepare(self, step: RunStep) -> Unit:
        if step.admit:
            self._units[step.unit] = self._new_unit()
            return self._units[step.unit]
        unit, started_ns = self._unit(step.unit), self._clock_ns()
        unit.drop(step.drop)
        for other in step.join:
            unit.join(self._unit(other))
            del self._units[other]
        self._moved_ns += self._clock_ns() - started_ns
        return unit

    def _new_unit(self) -> Unit:
        where = "cpu" if self._device is None else self._device.torch_device
        return new_unit(self._model.config, self._abilities, where)

    def _unit(self, number: int) -> Unit:
        if number not in self._units:
            raise EngineError(f"step for unit {number}, which is not here", "compute", "This is a bug")
        return self._units[number]

    def _forward(self, unit: Unit, step: RunStep) -> torch.Tensor:
        inputs = self._prefill(unit, step.admit) if step.admit else unit.prepare_step()
        self._routing.begin(inputs.tokens, inputs.source_tokens)
        return unit.run(self._model, inputs)

    def _prefill(self, unit: Unit, rows: list[RequestRow]) -> StepInput:
        return unit.prepare_prefill(rows, [read_images(self._model, row, self._attachments) for row in rows])

    def _rescue(self, step: RunStep, error: Exception) -> list[int | RowFailed]:
        """Recompute the rows of a broken step in smaller parts, so that only a guilty one fails."""
        rows = self._take_apart(step)
        self._attempts.failed(rows, error)
        survivors = self._units[step.unit] = self._new_unit()
        return self._run_parts(step, rows, survivors, error)

    def _take_apart(self, step: RunStep) -> list[RequestRow]:
        """The rows of a step, whose units are gone: what follows may need their memory."""
        units = [self._units.pop(number) for number in (step.unit, *step.join) if number in self._units]
        rows = [row for unit in units for row in unit.whole_rows()]
        for unit in units:
            unit.clear()
        return step.admit or rows

    def _run_parts(
        self, step: RunStep, rows: list[RequestRow], survivors: Unit, error: Exception
    ) -> list[int | RowFailed]:
        """What `rows` choose, who together ended in `error`; those who can go on join `survivors`."""
        if self._device is not None:
            self._device.require_usable()
        if len(rows) == 1:
            return [_failure(error)]
        error.__traceback__ = None  # it holds on to the tensors of all frames
        return [chosen for part in _parts(rows, error) for chosen in self._run_part(step, part, survivors)]

    def _run_part(self, step: RunStep, rows: list[RequestRow], survivors: Unit) -> list[int | RowFailed]:
        unit, part = self._new_unit(), msgspec.structs.replace(step, drop=[], join=[], admit=rows)
        try:
            chosen = self._choose(part, unit, self._forward(unit, part))
        except ComputeStopped:
            raise
        except Exception as error:  # noqa: BLE001 - one of these rows is the guilty one
            failure = error
            self._attempts.failed(rows, error)
        else:
            self._attempts.succeeded(rows)
            survivors.join(unit)
            return chosen
        return self._run_parts(step, rows, survivors, failure)

    def _settle(
        self, unit: Unit, rows: list[int], chosen: list[int | RowFailed]
    ) -> tuple[dict[int, int], dict[int, ErrorFacts]]:
        outcome = dict(zip(rows, chosen, strict=True))
        failed = {row: ErrorFacts.of(each) for row, each in outcome.items() if isinstance(each, RowFailed)}
        tokens = {row: each for row, each in outcome.items() if not isinstance(each, RowFailed)}
        unit.drop([row for row in failed if row in unit.numbers])
        unit.append([tokens[row] for row in unit.numbers])
        return tokens, failed


def _parts(rows: list[RequestRow], error: Exception) -> list[list[RequestRow]]:
    """Halves if they were too many at once; else each alone."""
    if not isinstance(error, torch.OutOfMemoryError):
        return [[row] for row in rows]
    middle = len(rows) // 2
    return [rows[:middle], rows[middle:]]


def _failure(error: Exception) -> RowFailed:
    if isinstance(error, RowFailed):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        remedy = "Send a shorter prompt, or give the engine less expert_memory or kv_memory"
        return RowFailed("does not fit the memory of the device, alone either", "step", remedy)
    if isinstance(error, RequestError):
        return RowFailed(error.what, error.where, error.remedy)
    return RowFailed(f"{type(error).__name__}: {error}", "step", "Send the request again; if it fails again, report it")
