"""Measures what the experts of each layer contribute to the state of a token, on the tokens of a trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import UsageError
from ...ipc.messages import DropUnit, RequestRow, RunStep, Sampling
from ...workers.checkpoint.survey import Survey
from ...workers.traces.trace import Trace
from ..verify.local_runtime import LocalRuntime
from .comparison import CHUNK_TOKENS, ROWS, Report, few_slots

STEPS = 2
"""Prefills that are measured; each reads every expert once."""


def measure_contributions(survey: Survey, layers: list[str], trace: Trace, report: Report) -> np.ndarray:
    """Return float64 [layers]: squares of what the experts add over squares of the state behind their layer.

    `layers`: paths of the decoder layers of the MoE layers. The model reads tokens of the trace again, with few expert
    slots. Raises UsageError if the trace has no sequence of two tokens.
    """
    prompts = list(_prompts(trace))
    if not prompts:
        raise UsageError("has no sequence of two tokens", "the trace", "Record longer texts")
    added, states = np.zeros(len(layers)), np.zeros(len(layers))
    with LocalRuntime(survey, few_slots(survey), hints=False) as runtime:
        for number, (name, layer) in enumerate(zip(survey.module_names, layers, strict=True)):
            _watch(runtime.model.get_submodule(name), added, number)
            _watch(runtime.model.get_submodule(layer), states, number)
        steps = [prompts[at : at + ROWS] for at in range(0, len(prompts), ROWS)]
        for number, rows in enumerate(steps, start=1):
            admitted = [RequestRow(row, tokens, 0, Sampling()) for row, tokens in enumerate(rows)]
            runtime.run(RunStep(number=number, unit=number, admit=admitted))
            runtime.order(DropUnit(number))
            report("reading the trace", number, len(steps))
    return added / np.maximum(states, np.finfo(np.float64).tiny)


def _prompts(trace: Trace) -> Iterator[list[int]]:
    """Yield beginnings of sequences, all of one length: pads would be measured, too."""
    lengths = np.diff(trace.offsets)
    length = min(int(lengths.max(initial=0)), CHUNK_TOKENS)
    long_enough = np.flatnonzero(lengths >= length) if length > 1 else np.empty(0, np.int64)
    for start in trace.offsets[long_enough[: STEPS * ROWS]].tolist():
        yield trace.token_ids[start : start + length].tolist()


def _watch(module: nn.Module, sums: np.ndarray, number: int) -> None:
    """Add the squares of all that a module returns to `sums` [layers]."""

    def add(_module: nn.Module, _given: Any, returned: Any) -> None:
        values: Tensor = returned[0] if isinstance(returned, tuple) else returned
        sums[number] += float(values.to(torch.float64).square().sum())

    module.register_forward_hook(add)
