"""Importance of layers and experts, by what a recorded trace says of the experts and a run of the layers."""

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

_LAYER = re.compile(r"(.*\.layers\.(\d+))\.")
_REMEDY = "Record one with this model: expertflow trace FOLDER --model SRC --text FILE"


@dataclass(frozen=True)
class Importance:
    """Figures by which layers are chosen, in the order of the MoE layers."""

    layers: list[int]
    """Number of the decoder layer of each."""
    loads: np.ndarray
    """float64 [layers, experts], 1 in all for a layer: each expert's share of the router's weights over all tokens.

    An expert's error reaches the state of a token times that weight, and not at all where it was not chosen.
    """
    contributions: np.ndarray
    """float64 [layers]: squares of what the experts add to the state of a token over squares of that state."""


def read_routing_of(survey: Survey, path: Path) -> Trace:
    """Return the trace at `path` (a folder or an npz file), which is one of this model.

    Raises UsageError if there is none, if it is empty, or if it is of another model or does not say of which.
    """
    trace = read_trace(path)
    recorded, own = (trace.layers, trace.expert_count, trace.top_k), (survey.layers, survey.experts, survey.top_k)
    if recorded != own:
        words = ["{} MoE layers of {} experts, {} a token".format(*sizes) for sizes in (recorded, own)]
        raise UsageError(f"has {words[0]}; the model has {words[1]}", str(path), _REMEDY)
    if trace.model != survey.fingerprint:
        what = f"is of another model (fingerprint {trace.model or 'unknown'}, not {survey.fingerprint})"
        raise UsageError(what, str(path), _REMEDY)
    return trace


def count_loads(trace: Trace, where: Path) -> np.ndarray:
    """Return `Importance.loads`; a trace without weights counts each choice as 1.

    Raises UsageError if a layer has no routed token.
    """
    weights = np.ones(trace.routes.shape) if trace.weights is None else trace.weights.astype(np.float64)
    weights = np.where((trace.routes == UNROUTED) | ~np.isfinite(weights), 0.0, weights)
    loads = np.zeros((trace.layers, trace.expert_count))
    for layer in range(trace.layers):
        routes = np.where(trace.routes[:, layer] == UNROUTED, 0, trace.routes[:, layer])
        np.add.at(loads[layer], routes.ravel(), weights[:, layer].ravel())
    if not (loads.sum(1) > 0).all():
        what = f"is empty: it routes no token in MoE layer {int(loads.sum(1).argmin())}"
        raise UsageError(what, str(where), _REMEDY)
    return loads / loads.sum(1, keepdims=True)


def decoder_layers(survey: Survey) -> dict[str, int]:
    """Return path and number of the decoder layer of each MoE layer. Raises UsageError if names have no numbers."""
    found = [_LAYER.match(f"{name}.") for name in survey.module_names]
    if not all(found):
        what = "has experts whose names tell no layer's number"
        raise UsageError(what, survey.folder, "Quantise it without --mixed")
    return {match[1]: int(match[2]) for match in found if match}
