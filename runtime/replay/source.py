"""What is replayed: a trace cut into steps, and what else was recorded of these."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ...errors import UsageError
from ...workers.traces.reading import read_step_log, read_trace
from ...workers.traces.step_log import StepLog
from ...workers.traces.trace import Trace
from .steps import Program, Uses, batch_steps, first_tokens, recorded_steps, uses_of


@dataclass(frozen=True)
class ReplaySource:
    """A trace and the step of each of its tokens. `log` and `places` (of the steps in it) if an engine recorded both
    the trace and these very steps."""

    trace: Trace
    steps: np.ndarray
    """int64 [tokens]."""
    log: StepLog | None = None
    places: np.ndarray | None = None
    """int64 [steps]."""

    @cached_property
    def uses(self) -> Uses:
        return uses_of(self.trace, self.steps)

    @cached_property
    def program(self) -> Program:
        return Program(self.trace, self.steps)

    @cached_property
    def unions(self) -> np.ndarray:
        """int64 [steps, layers]: distinct experts."""
        uses = self.uses
        step_of = np.repeat(np.arange(uses.steps), np.diff(uses.starts))
        counts = np.bincount(step_of * uses.layers + uses.keys // uses.experts, minlength=uses.steps * uses.layers)
        return counts.reshape(uses.steps, uses.layers)


def open_source(path: Path, batch: int, tokens: int, held_out: float = 0.0, seed: int = 0) -> ReplaySource:
    """An npz file or the folder of a trace.

    `batch` rows side by side, over the first `tokens` tokens (0: all); `batch` 0: the steps as they were recorded, all
    of them, or one row if none were. `held_out`: only this share of the sequences, those that training with `seed`
    keeps for judging. Raises UsageError if there is no trace, or if an option makes no sense.
    """
    trace = read_trace(path)
    if trace.encoder_layers:
        what = "is of a model with an encoder, and a replay takes every token to go through every layer"
        raise UsageError(what, str(path), "Replay a trace of a model without one")
    if held_out:
        _, trace = trace.split(held_out, seed)
        trace = replace(trace, steps=None)  # what is left of them is not what ran
    if batch == 0 and trace.steps is not None:
        log = read_step_log(path) if path.is_dir() else None
        return ReplaySource(trace, recorded_steps(trace), log, np.unique(trace.steps))
    head = first_tokens(trace, tokens) if tokens else trace
    return ReplaySource(head, batch_steps(head, batch or 1))
