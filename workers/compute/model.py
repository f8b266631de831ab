"""The model as compute runs it: transformers' skeleton, its experts modules bound to slots."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ..checkpoint.architecture import EXPERTS_IMPLEMENTATION, experts_modules, load_skeleton
from ..checkpoint.survey import Survey
from .experts import ExpertFeed, ExpertsLayer, dispatch
from .hints import Hinter
from .routing import StepRouting
from .streamed_linear import stream_linears


def load_model(survey: Survey, feed: ExpertFeed, routing: StepRouting) -> PreTrainedModel:
    """The skeleton of a surveyed checkpoint with every experts module bound to `feed`."""
    model = load_unbound(survey)
    bind(model, feed, routing)
    return model


def load_unbound(survey: Survey) -> PreTrainedModel:
    """The skeleton as it computes here; its experts still have to be bound."""
    ALL_EXPERTS_FUNCTIONS.register(EXPERTS_IMPLEMENTATION, dispatch)
    model = load_skeleton(Path(survey.folder), getattr(torch, survey.dtype))
    stream_linears(model)
    return model


def bind(model: PreTrainedModel, feed: ExpertFeed, routing: StepRouting) -> None:
    """Let every experts module get its experts from `feed`."""
    for layer, (_, module) in enumerate(experts_modules(model)):
        module.expertflow_layer = ExpertsLayer(layer, feed, routing)  # pyright: ignore[reportArgumentType]


def attach(hinter: Hinter, model: PreTrainedModel) -> None:
    """From now on every MoE layer shows the hinter its choice."""
    for _, module in experts_modules(model):
        module.expertflow_layer.hinter = hinter  # pyright: ignore
