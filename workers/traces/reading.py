"""A folder of streams, or an npz file, as arrays. Works on the folder of an engine that runs, too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from ...errors import UsageError
from .folder import read_header, read_plans, read_steps
from .gathering import Gathered, check_step
from .sequences import first_of_each
from .step_log import StepLog, log_steps
from .trace import Trace, read_npz


@dataclass(frozen=True, kw_only=True)
class HiddenStates:
    """What went into the MoE layers, for M sampled tokens of a trace."""

    states: np.ndarray
    """float16 [M, layers, width]."""
    tokens: np.ndarray
    """int64 [M]: their places in the trace that `read_trace` gives for the same folder, ascending."""


def read_trace(path: str | Path) -> Trace:
    """The trace of an npz file or of a folder that an engine wrote, or still writes.

    Raises UsageError if there is none, if it is broken, or if no step has ended yet.
    """
    return _trace_of(Gathered(Path(path))) if Path(path).is_dir() else read_npz(path)


def read_step_log(folder: str | Path) -> StepLog:
    """Every step of a folder with the plan and the hints it was given: `Trace.steps` are places in it.

    Raises UsageError as `read_trace` does.
    """
    folder = Path(folder)
    header, steps = read_header(folder), []
    for step in read_steps(folder):
        check_step(step, header, folder)
        steps.append(msgspec.structs.replace(step, experts=b"", weights=b"", hidden=b"", sampled=[]))  # they are big
    return log_steps(header, steps, {plan.step: plan for plan in read_plans(folder)})


def read_hidden(folder: str | Path) -> tuple[Trace, HiddenStates]:
    """A trace and the hidden states of its sampled tokens. Raises UsageError as `read_trace`, or if none were kept."""
    if read_header(Path(folder)).encoder_layers:
        what = "is of a model with an encoder, where no token sees all layers: hidden states are not kept"
        raise UsageError(what, str(folder), "The next layer's own router (hints = router) needs no training")
    gathered = Gathered(Path(folder), hidden=True)
    kept_states = gathered.pop_hidden()
    if kept_states is None:
        raise UsageError("no hidden states were kept", str(folder), "Trace with --hidden 0.1, for example")
    sampled, states = kept_states
    kept = first_of_each(gathered.sequences(), gathered.column("positions"))
    places = np.full(len(gathered.column("positions")), -1)
    places[kept] = np.arange(len(kept))
    tokens = places[sampled]
    order = np.argsort(tokens)[np.count_nonzero(tokens < 0) :]
    return _trace_of(gathered), HiddenStates(states=states[order], tokens=tokens[order])


def _trace_of(gathered: Gathered) -> Trace:
    sequences = gathered.sequences()
    kept = first_of_each(sequences, gathered.column("positions"))
    lengths = np.bincount(sequences[kept])
    return Trace(
        routes=gathered.column("experts")[kept].astype(np.uint16),
        token_ids=gathered.column("token_ids")[kept],
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        expert_count=gathered.header.experts,
        decoded=gathered.column("decoded")[kept],
        weights=gathered.column("weights")[kept].astype(np.float16),
        steps=gathered.column("steps")[kept],
        model=gathered.header.fingerprint,
        encoder_layers=gathered.header.encoder_layers,
    )
