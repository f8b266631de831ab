"""Source of a replay: a trace cut into steps, and the log of these steps if there is one."""

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
    """A trace and the step of each of its tokens. `log` is given if an engine recorded the trace in these steps."""

    trace: Trace
    steps: np.ndarray
    """int64 [tokens]: step of each token, numbered from 0."""
    log: StepLog | None = None
    log_indices: np.ndarray | None = None
    """int64 [steps]: index of each step in `log`."""

    @cached_property
    def uses(self) -> Uses:
        """Return the distinct experts of every step."""
        return uses_of(self.trace, self.steps)

    @cached_property
    def program(self) -> Program:
        """Return the steps as compute runs them in a timed replay."""
        return Program(self.trace, self.steps)

    @cached_property
    def unions(self) -> np.ndarray:
        """Return int64 [steps, layers]: numbers of distinct experts."""
        uses = self.uses
        step_of = np.repeat(np.arange(uses.steps), np.diff(uses.starts))
        counts = np.bincount(step_of * uses.layers + uses.keys // uses.experts, minlength=uses.steps * uses.layers)
        return counts.reshape(uses.steps, uses.layers)


def open_source(path: Path, batch: int, tokens: int, held_out: float = 0.0, seed: int = 0) -> ReplaySource:
    """Return the source in an npz file or in the folder of a trace.

    `batch` sequences run side by side, over the first `tokens` tokens (0: all). `batch` 0 takes all steps as recorded,
    or one sequence at a time if none were recorded. `held_out` takes only this share of the sequences: those that
    training with `seed` keeps for judging. Raises UsageError if there is no trace, or if an option is out of range.
    """
    trace = read_trace(path)
    if trace.encoder_layers:
        what = "is of a model with an encoder, and a replay takes every token to go through every layer"
        raise UsageError(what, str(path), "Replay a trace of a model without one")
    if held_out:
        _, trace = trace.split(held_out, seed)
        trace = replace(trace, steps=None)  # the recorded steps ran other sequences, too
    if batch == 0 and trace.steps is not None:
        log = read_step_log(path) if path.is_dir() else None
        return ReplaySource(trace, recorded_steps(trace), log, np.unique(trace.steps))
    head = first_tokens(trace, tokens) if tokens else trace
    return ReplaySource(head, batch_steps(head, batch or 1))
