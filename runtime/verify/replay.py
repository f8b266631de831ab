"""Replays a recording step by step in this process, with every expert resident and the recorded tokens forced."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch

from ...configs.sizes import format_size
from ...errors import BudgetError, UsageError
from ...ipc.messages import RunStep, Stepped
from ...ipc.shared.attachments import FOLDER
from ...ipc.shared.available import available_bytes
from ...workers.checkpoint.survey import Survey
from ...workers.compute.device.base import Device
from ...workers.compute.recording import DIGEST_BYTES, Recorded, digest_rows, read_steps
from ...workers.compute.sampling.failure import RowFailed
from ...workers.model.unit import RowAbilities, Unit
from .local_runtime import LocalRuntime


class ReplayedStep(msgspec.Struct, frozen=True):
    """A recorded step and its logits [rows, vocabulary] in the replay.

    `output_indices[i]` is the output index of the next token of row `rows[i]`.
    """

    recorded: Stepped
    rows: list[int]
    output_indices: list[int]
    logits: torch.Tensor

    def differing_rows(self) -> list[int]:
        """Return the rows whose logits differ in any bit from the recorded ones."""
        pairs = zip(self._by_row(digest_rows(self.logits)), self.recorded_digests(), strict=True)
        return [row for row, pair in zip(self.rows, pairs, strict=True) if len({*pair}) > 1]

    def recorded_digests(self) -> list[bytes]:
        """Return the digest of each row's logits when they were recorded."""
        return self._by_row(self.recorded.digest)

    def _by_row(self, digests: bytes) -> list[bytes]:
        return [digests[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES] for i in range(len(self.rows))]


class _Forced:
    """A chooser that gives every row its recorded token, and keeps the logits."""

    def __init__(self) -> None:
        self.recorded: Stepped | None = None
        self.seen: ReplayedStep | None = None

    def choose(self, step: RunStep, unit: Unit, logits: torch.Tensor) -> list[int | RowFailed]:
        """Return the recorded tokens of a step, and keep its logits [rows, vocabulary]."""
        if self.recorded is None:
            raise UsageError("a step has no result", f"step {step.number}", "Record again")
        tokens = dict(zip(self.recorded.rows, self.recorded.tokens, strict=True))
        self.seen = ReplayedStep(self.recorded, unit.numbers, unit.output_indices, logits)
        return [tokens.get(row, RowFailed("failed when it was recorded", "step")) for row in unit.numbers]


def replay(
    folder: Path, survey: Survey, abilities: RowAbilities | None = None, device: Device | None = None
) -> Iterator[ReplayedStep]:
    """Yield every recorded step with its replayed logits.

    Raises UsageError for a folder without a recording, BudgetError if the whole model does not fit memory.
    """
    free_memory()
    _check_memory(survey, available_bytes(), "verify")
    if device is not None:
        _check_memory(survey, device.free_bytes(), device.name)
    starts = list(read_steps(str(folder)))
    if not any(starts):
        raise UsageError("holds no recorded steps", str(folder), "Run with record=FOLDER first")
    for start in starts:
        yield from _replay_start(survey, abilities, start, folder / FOLDER, device)
        free_memory()


def count_steps(folder: Path) -> int:
    """Return how many steps a recording holds."""
    return sum(isinstance(entry, Stepped) for start in read_steps(str(folder)) for entry in start)


def free_memory() -> None:
    """Free the memory of unused models: they are full of reference cycles, and a device's memory is short."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing without CUDA


def _replay_start(
    survey: Survey, abilities: RowAbilities | None, start: list[Recorded], images: Path, device: Device | None
) -> Iterator[ReplayedStep]:
    """Yield the steps of one start of compute. On a device experts come from a host store, which is filled once."""
    forced, tier, slots = _Forced(), "disk" if device is None else "host", survey.expert_count
    with LocalRuntime(survey, slots, abilities, forced.choose, tier=tier, attachments=images, device=device) as runtime:
        yield from _replay_steps(runtime, start, forced)


def _replay_steps(runtime: LocalRuntime, start: list[Recorded], forced: _Forced) -> Iterator[ReplayedStep]:
    step: RunStep | None = None
    for entry in start:
        if isinstance(entry, RunStep):
            step = entry
        elif not isinstance(entry, Stepped):
            runtime.order(entry)
        elif step is not None:
            forced.recorded, forced.seen = entry, None
            runtime.run(step)
            if forced.seen is not None:
                yield forced.seen


def _check_memory(survey: Survey, available: int, where: str) -> None:
    needed = survey.expert_count * survey.stride_bytes + survey.loaded_skeleton_bytes
    if needed > available:
        what = f"running with everything resident takes {format_size(needed)}, {format_size(available)} are available"
        raise BudgetError(what, where, "Verify on a machine with more memory")
