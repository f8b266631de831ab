"""Finds the modules of families that transformers' experts interface does not show whole and puts their adapters in
front."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from .dbrx import DbrxExperts
from .ernie_vl import ErnieVlBlock
from .jetmoe import JetMoeBlock, JetMoeGating
from .llama4 import Llama4Block, Llama4Experts
from .switch import SwitchBlock, SwitchExperts
from .temperature import temper_by_position

_IN_FRONT: dict[str, type[nn.Module]] = {
    "DbrxExperts": DbrxExperts,
    "Ernie4_5_VLMoeMoeBlock": ErnieVlBlock,
    "JetMoeMoE": JetMoeBlock,
    "JetMoeTopKGating": JetMoeGating,
    "Llama4TextExperts": Llama4Experts,
    "Llama4TextMoe": Llama4Block,
    "SwitchTransformersExperts": SwitchExperts,
    "SwitchTransformersSparseMLP": SwitchBlock,
}
"""By the name of the library's class."""


def adapt(model: PreTrainedModel) -> None:
    """Change these modules in place: their class becomes a subclass of the library's, their parameters stay."""
    temper_by_position(model)
    for path, module in list(model.named_modules()):
        adapter = _IN_FRONT.get(type(module).__name__)
        if adapter is not None and _is_of_library(module):
            _put_in_front(adapter, module)
            module.config, module.path = model.config, path  # pyright: ignore[reportArgumentType]


def _put_in_front(adapter: type[nn.Module], module: nn.Module) -> None:
    kind = type(module)
    module.__class__ = type(kind.__name__, (adapter, kind), {"__module__": adapter.__module__})


def _is_of_library(module: nn.Module) -> bool:
    return type(module).__module__.startswith("transformers.")
