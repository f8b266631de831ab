"""Reader of traces as arrays, from a folder or an npz file. The engine that writes the folder may still run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from ...errors import UsageError
from .folder import read_header, read_plans, read_steps
from .sequences import first_of_each
from .step_log import StepLog, make_step_log
from .token_arrays import TokenArrays, check_step
from .trace import Trace, read_npz


@dataclass(frozen=True, kw_only=True)
class HiddenStates:
    """Inputs of the MoE layers, for M sampled tokens of a trace."""

    states: np.ndarray
    """float16 [M, layers, width]."""
    tokens: np.ndarray
    """int64 [M]: indices of the tokens in the trace that `read_trace` returns for the same folder, ascending."""


def read_trace(path: str | Path) -> Trace:
    """Return the trace of an npz file, or of a folder that an engine wrote or still writes.

    Raises UsageError if there is none, if it is broken, or if no step has ended yet.
    """
    return _trace_of(TokenArrays(Path(path))) if Path(path).is_dir() else read_npz(path)


def read_step_log(folder: str | Path) -> StepLog:
    """Return every step of a folder with its plan and its hints. `Trace.steps` are indices into this log.

    Raises UsageError as `read_trace` does.
    """
    folder = Path(folder)
    header, steps = read_header(folder), []
    for step in read_steps(folder):
        check_step(step, header, folder)
        steps.append(msgspec.structs.replace(step, experts=b"", weights=b"", hidden=b"", sampled=[]))  # to save memory
    return make_step_log(header, steps, {plan.step: plan for plan in read_plans(folder)})


def read_hidden(folder: str | Path) -> tuple[Trace, HiddenStates]:
    """Return a trace and the hidden states of its sampled tokens.

    Raises UsageError as `read_trace` does, or if no hidden states were kept.
    """
    if read_header(Path(folder)).encoder_layers:
        what = "is of a model with an encoder, where no token sees all layers: hidden states are not kept"
        raise UsageError(what, str(folder), "The next layer's own router (hints = router) needs no training")
    arrays = TokenArrays(Path(folder), hidden=True)
    hidden = arrays.pop_hidden()
    if hidden is None:
        raise UsageError("no hidden states were kept", str(folder), "Trace with --hidden 0.1, for example")
    sampled, states = hidden
    kept = first_of_each(arrays.sequences(), arrays.column("positions"))
    indices = np.full(len(arrays.column("positions")), -1)
    indices[kept] = np.arange(len(kept))
    tokens = indices[sampled]
    order = np.argsort(tokens)[np.count_nonzero(tokens < 0) :]
    return _trace_of(arrays), HiddenStates(states=states[order], tokens=tokens[order])


def _trace_of(arrays: TokenArrays) -> Trace:
    sequences = arrays.sequences()
    kept = first_of_each(sequences, arrays.column("positions"))
    lengths = np.bincount(sequences[kept])
    return Trace(
        routes=arrays.column("experts")[kept].astype(np.uint16),
        token_ids=arrays.column("token_ids")[kept],
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        expert_count=arrays.header.experts,
        decoded=arrays.column("decoded")[kept],
        weights=arrays.column("weights")[kept].astype(np.float16),
        steps=arrays.column("steps")[kept],
        model=arrays.header.fingerprint,
        encoder_layers=arrays.header.encoder_layers,
    )
