"""The list of models: one, under each of its names."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from .model import ServedModel


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A model. `max_model_len`: positions of its context, as vLLM says it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "expertflow"
    root: str
    parent: None = None
    max_model_len: int
    permission: list[Any] = []


class ModelList(msgspec.Struct, frozen=True):
    """Answer of /v1/models."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


def list_models(model: ServedModel) -> ModelList:
    """Return the model under all of its names."""
    return ModelList([_card(model, name) for name in model.names])


def show_model(model: ServedModel, name: str) -> ModelCard:
    """Return the model under this name. Raises ApiError (404) for another."""
    return _card(model, model.require(name))


def _card(model: ServedModel, name: str) -> ModelCard:
    return ModelCard(id=name, created=model.created, root=str(model.folder), max_model_len=model.facts.context)
