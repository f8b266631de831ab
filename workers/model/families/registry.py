"""Finds the modules of families that transformers' experts interface does not show whole and puts their adapters in
front."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from .dbrx import DbrxExperts
from .ernie_vl import ErnieVlBlock
from .jetmoe import JetMoeBlock, JetMoeGating
from .llama4 import Llama4Block, Llama4Experts, temper_by_position
from .nllb import CorrectedNllbBlock, NllbBlock, NllbExperts, count_by_mask
from .switch import SwitchBlock, SwitchExperts

ADAPTERS: dict[str, type[nn.Module]] = {
    "DbrxExperts": DbrxExperts,
    "Ernie4_5_VLMoeMoeBlock": ErnieVlBlock,
    "JetMoeMoE": JetMoeBlock,
    "JetMoeTopKGating": JetMoeGating,
    "Llama4TextExperts": Llama4Experts,
    "Llama4TextMoe": Llama4Block,
    "NllbMoeExperts": NllbExperts,
    "NllbMoeSparseMLP": NllbBlock,
    "SwitchTransformersExperts": SwitchExperts,
    "SwitchTransformersSparseMLP": SwitchBlock,
}
"""By the name of the library's class."""

CORRECTED_BLOCKS: dict[str, type[nn.Module]] = {"NllbMoeSparseMLP": CorrectedNllbBlock}
"""What the library computes wrongly with all its experts."""


def adapt(model: PreTrainedModel) -> None:
    """Change these modules in place: their class becomes a subclass of the library's, their parameters stay."""
    correct_positions(model)
    for path, module in list(model.named_modules()):
        adapter = ADAPTERS.get(type(module).__name__)
        if adapter is not None and _is_of_library(module):
            _put_in_front(adapter, module)
            module.config, module.path = model.config, path  # pyright: ignore[reportArgumentType]


def correct_positions(model: PreTrainedModel) -> None:
    """Let padded rows stand where they stand alone, in a model that is run with its own experts, too."""
    temper_by_position(model)
    count_by_mask(model)


def correct_blocks(model: PreTrainedModel) -> None:
    """Let a model with all its experts compute what it was trained to where the library does not; others stay."""
    for module in list(model.modules()):
        mended = CORRECTED_BLOCKS.get(type(module).__name__)
        if mended is not None and _is_of_library(module):
            _put_in_front(mended, module)


def _put_in_front(adapter: type[nn.Module], module: nn.Module) -> None:
    kind = type(module)
    module.__class__ = type(kind.__name__, (adapter, kind), {"__module__": adapter.__module__})


def _is_of_library(module: nn.Module) -> bool:
    return type(module).__module__.startswith("transformers.")
