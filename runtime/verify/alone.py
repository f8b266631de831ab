"""Runs the batch-invariant rows of a recording again, each alone, and compares their bits (I1d)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...ipc.messages import DropUnit, RequestRow, RunStep
from ...ipc.shared.attachments import FOLDER
from ...workers.checkpoint.survey import Survey
from ...workers.compute.recording import digest_rows, read_steps
from ...workers.compute.sampling.failure import RowFailed
from ...workers.model.unit import RowAbilities, Unit
from .local_runtime import LocalRuntime
from .replay import ReplayedStep, free_memory


@dataclass
class RecordedRow:
    """A row as it was recorded: how it began; then its tokens and the digests of its logits, one an output."""

    request: RequestRow
    tokens: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    neighbours: int = 0
    """Most other rows in one of its steps."""

    def add(self, index: int, digest: bytes, token: int | None, neighbours: int) -> None:
        """Add the output of this index. A step that was recorded again, after a death of compute, is left out."""
        if token is None or index != self.request.generated + len(self.tokens):
            return
        self.tokens.append(token)
        self.digests.append(digest)
        self.neighbours = max(self.neighbours, neighbours)


def has_invariant_rows(folder: Path) -> bool:
    """Return whether a recording has batch-invariant rows."""
    return bool(_invariant_steps(folder))


def recorded_rows(folder: Path, replayed: Iterable[ReplayedStep]) -> list[RecordedRow]:
    """Return the batch-invariant rows of a recording; `replayed` are its steps, which say where each row stands."""
    steps = _invariant_steps(folder)  # newest first: of two prefills of a row, the earlier one is kept
    rows = {row.number: RecordedRow(row) for step in steps for row in step.admit}
    for step in replayed:
        tokens = dict(zip(step.recorded.rows, step.recorded.tokens, strict=True))
        for row, index, digest in zip(step.rows, step.output_indices, step.recorded_digests(), strict=True):
            if row in rows:
                rows[row].add(index, digest, tokens.get(row), len(step.rows) - 1)
    return [row for row in rows.values() if row.tokens]


def first_difference(
    folder: Path, rows: Iterable[RecordedRow], survey: Survey, abilities: RowAbilities
) -> tuple[int, int] | None:
    """Run each row alone with every expert resident.

    Return number and output index of the first logits with other bits than recorded; None if all are equal.
    """
    free_memory()
    forced = _Forced()
    with LocalRuntime(survey, survey.expert_count, abilities, forced.choose, attachments=folder / FOLDER) as runtime:
        for row in rows:
            forced.begin(row.tokens)
            for step in _steps_alone(row):
                runtime.run(step)
            runtime.order(DropUnit(row.request.number))
            differing = [i for i, pair in enumerate(zip(forced.digests, row.digests, strict=False)) if len({*pair}) > 1]
            if differing or len(forced.digests) != len(row.digests):
                return row.request.number, row.request.generated + (differing or [len(forced.digests)])[0]
    return None


def _invariant_steps(folder: Path) -> list[RunStep]:
    """Return the recorded steps of batch-invariant rows, the newest first."""
    steps = [entry for start in read_steps(str(folder)) for entry in start if isinstance(entry, RunStep)]
    return [step for step in reversed(steps) if step.batch_invariant]


def _steps_alone(row: RecordedRow) -> Iterator[RunStep]:
    request, number = row.request, row.request.number
    yield RunStep(number=0, unit=number, admit=[request], batch_invariant=True)
    prompt = len(request.token_ids) - request.generated
    for _ in range(request.chunk, prompt, request.chunk) if request.chunk else ():
        yield RunStep(number=0, unit=number, continues=True, batch_invariant=True)
    for step in range(1, len(row.tokens)):
        yield RunStep(number=step, unit=number, batch_invariant=True)


class _Forced:
    """A chooser that gives the only row its recorded tokens, and keeps the digests of its logits."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self.digests: list[bytes] = []

    def begin(self, tokens: list[int]) -> None:
        """Begin a row with these outputs."""
        self._tokens, self.digests = tokens, []

    def choose(self, step: RunStep, unit: Unit, logits: torch.Tensor) -> list[int | RowFailed]:
        """Return the next recorded token."""
        self.digests.append(digest_rows(logits))
        return [self._tokens[len(self.digests) - 1]]
