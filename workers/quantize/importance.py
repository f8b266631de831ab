"""Importance of experts, counted on a recorded trace: how much of the layers' results is theirs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UsageError
from ..checkpoint.survey import Survey
from ..traces.reading import read_trace
from ..traces.routing import UNROUTED
from ..traces.trace import Trace

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_REMEDY = "Record one with this model: expertflow trace FOLDER --model SRC --text FILE"


@dataclass(frozen=True)
class ExpertLoads:
    """Loads of all experts of a model, float64 [MoE layers, experts], and the decoder layer of each MoE layer.

    The load of an expert is the sum of the router's weights for it over all tokens, divided by the tokens: the error
    of an expert reaches a token's state times that weight, and not at all where the expert was not chosen. A trace
    without weights counts each choice as 1.
    """

    loads: np.ndarray
    layers: list[int]


def read_loads(trace: Path, survey: Survey) -> ExpertLoads:
    """Return the loads of the experts of `survey`'s model, counted on a trace of it (a folder or an npz file).

    Raises UsageError if there is no trace, if it is empty, or if it is of another model.
    """
    recorded = read_trace(trace)
    _check_model(recorded, survey, trace)
    numbers = [_LAYER.search(f".{name}.") for name in survey.module_names]
    if not all(numbers):
        what = "the layers of this model have no numbers in the names of their experts"
        raise UsageError(what, survey.folder, "Quantise it without --mixed")
    return ExpertLoads(count_loads(recorded, trace), [int(found[1]) for found in numbers if found])


def count_loads(trace: Trace, where: Path) -> np.ndarray:
    """Return the load of every expert, float64 [layers, experts]. Raises UsageError for an empty trace."""
    weights = np.ones(trace.routes.shape) if trace.weights is None else trace.weights.astype(np.float64)
    weights = np.where(trace.routes == UNROUTED, 0.0, weights)
    if not weights.any() or not np.isfinite(weights).all():
        raise UsageError("is empty: no token in it is routed to an expert", str(where), _REMEDY)
    loads = np.zeros((trace.layers, trace.expert_count))
    for layer in range(trace.layers):
        routes = np.where(trace.routes[:, layer] == UNROUTED, 0, trace.routes[:, layer])
        np.add.at(loads[layer], routes.ravel(), weights[:, layer].ravel())
    return loads / trace.tokens


def _check_model(trace: Trace, survey: Survey, where: Path) -> None:
    """Raise UsageError if the trace cannot be of this model."""
    recorded, own = (trace.layers, trace.expert_count, trace.top_k), (survey.layers, survey.experts, survey.top_k)
    if recorded != own:
        what = "has %d MoE layers of %d experts, %d a token" % recorded
        raise UsageError(f"{what}; the model has {own[0]} of {own[1]}, {own[2]} a token", str(where), _REMEDY)
    if trace.model and trace.model != survey.fingerprint:
        what = f"is of another model (fingerprint {trace.model}, not {survey.fingerprint})"
        raise UsageError(what, str(where), _REMEDY)
