"""The model as compute runs it: transformers' skeleton, its experts modules bound to slots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ..checkpoint.stamps import check_files
from ..checkpoint.survey import Survey
from ..model.architecture import EXPERTS_IMPLEMENTATION, experts_modules, load_skeleton
from .experts.hints import Hinter
from .experts.layer import ExpertFeed, ExpertsLayer, dispatch
from .experts.routing import RoutingCollector
from .streamed_linear import stream_linears


def load_model(survey: Survey, feed: ExpertFeed, routing: RoutingCollector) -> PreTrainedModel:
    """The skeleton of a surveyed checkpoint with every experts module bound to `feed`."""
    model = load_unbound(survey)
    bind(model, feed, routing)
    return model


def load_unbound(survey: Survey, device: torch.device | None = None) -> PreTrainedModel:
    """Load the skeleton as it computes here, or on a device; its experts still have to be bound.

    Raises CheckpointError if a file cannot be read, or has changed since the survey.
    """
    ALL_EXPERTS_FUNCTIONS.register(EXPERTS_IMPLEMENTATION, dispatch)
    check_files(survey.stamps)
    model = load_skeleton(Path(survey.folder), getattr(torch, survey.dtype))
    check_files(survey.stamps)
    if device is None or device.type == "cpu":
        stream_linears(model)
        return model
    return model.to(device)  # pyright: ignore[reportArgumentType]


def bind(model: PreTrainedModel, feed: ExpertFeed, routing: RoutingCollector) -> None:
    """Let every experts module get its experts from `feed`."""
    bind_layers(model, lambda layer, _: ExpertsLayer(layer, feed, routing))


def bind_layers(model: PreTrainedModel, layer_of: Callable[[int, Any], ExpertsLayer]) -> None:
    """Give every experts module the layer that runs it, `layer_of(number, module)`."""
    for layer, (_, module) in enumerate(experts_modules(model)):
        module.expertflow_layer = layer_of(layer, module)  # pyright: ignore[reportArgumentType]


def attach(hinter: Hinter, model: PreTrainedModel) -> None:
    """From now on every MoE layer shows the hinter its choice."""
    for _, module in experts_modules(model):
        module.expertflow_layer.hinter = hinter  # pyright: ignore
