"""Routing habits from a recorded trace: what the engine's cache would have missed with so many slots and rows."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from ...errors import UsageError
from ...workers.checkpoint.survey import ModelSizes
from ..replay.experiment import Experiment, no_predictions
from ..replay.source import ReplaySource, open_source
from .forecast import Routing, distinct_experts, reuse_of
from .speed import Recorded

POLICY = "popularity"
"""Policy of an engine by default."""
TOKENS = 5_000
"""Tokens that are replayed, which takes about a second."""
FOLDER = "trace"
"""Folder in a model's folder in which a trace is looked for."""


def find_trace(given: Path | None, model_folder: str) -> Path | None:
    """Return the trace that was given, else the one in the model's folder, if there is one."""
    own = Path(model_folder, FOLDER)
    return given or (own if own.is_dir() else None)


def recorded(trace: Path | None, sizes: ModelSizes) -> Recorded | None:
    """Return the recording in a trace; None without one."""
    return None if trace is None else Recorded(partial(traced_routing, trace, sizes), f"replayed from {trace}")


def traced_routing(trace: Path, sizes: ModelSizes, slots: int, rows: int) -> Routing:
    """Return the routing of a recording as steps of `rows` sequences use it, by a cache of so many slots.

    Raises UsageError if there is no trace, or if it is of a model of other sizes.
    """
    source = open_source(trace, rows, TOKENS)
    found = source.trace.layers, source.trace.expert_count
    if found != (sizes.layers, sizes.experts):
        what = f"is of a model with {found[0]} layers of {found[1]} experts, not {sizes.layers} of {sizes.experts}"
        raise UsageError(what, str(trace), "Give a trace of this model (`expertflow trace`)")
    distinct = float(source.unions.mean()) / distinct_experts(sizes, rows, Routing())
    share = slots / sizes.expert_count
    if share >= 1:
        return Routing(distinct=distinct)
    missed = 1 - _replay(source).run(POLICY, slots).hit_rate
    return Routing(reuse=reuse_of(missed, share), reuse_of_rows=rows, distinct=distinct)


def _replay(source: ReplaySource) -> Experiment:
    """Return a counted replay, without predictions or hints."""
    return Experiment(
        source=source,
        sharing="pool",
        hints=None,
        loads_per_layer=math.inf,
        machine=None,
        timings=None,
        make_predictions=no_predictions,
        rank_victims="auto",
        uncalibrated=False,
    )
