"""Registry of model families outside transformers' experts interface.

To add a family, edit these places (docs/how-to/add-a-model-family.md explains each):

1. a new file beside this one: its adapters, the experts derived from `OutsideExperts` (base.py);
2. `ADAPTERS` below: an entry by the name of the library's class;
3. `tests/outside.py` (or `tests/families.py`): a tiny model, for all tests over families;
4. `refusals.py`: settings that cannot be run exactly, with the reason;
5. `../tiny_sizes.py`: names of sizes that a small copy has to cut down, if they are new;
6. `../cache_rows.py` or `own_cache_layers.py`: its cache layers, if their class is new;
7. `../architecture.py`, `WITH_IMAGES`: its model type, if images are shown to be exact;
8. `make models`: renews docs/models.md.

A family inside the interface needs none of 1, 2 and 4: it is recognised by structure.
"""

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
"""Adapter of each class of the library, by its name."""

CORRECTED_BLOCKS: dict[str, type[nn.Module]] = {"NllbMoeSparseMLP": CorrectedNllbBlock}
"""Replacement of each class that the library computes wrongly even with all its experts, by its name."""


def adapt(model: PreTrainedModel) -> None:
    """Put adapters before the classes of a model's modules, in place: their parameters stay.

    Each class becomes a subclass of the library's. The model's positions are corrected as well.
    """
    correct_positions(model)
    for path, module in list(model.named_modules()):
        adapter = ADAPTERS.get(type(module).__name__)
        if adapter is not None and _is_of_library(module):
            _derive_class(adapter, module)
            module.config, module.path = model.config, path  # pyright: ignore[reportArgumentType]


def correct_positions(model: PreTrainedModel) -> None:
    """Give padded rows the positions that they have alone; for models with their own experts, too."""
    temper_by_position(model)
    count_by_mask(model)


def correct_blocks(model: PreTrainedModel) -> None:
    """Correct blocks that the library computes wrongly, in a model with all its experts; others stay."""
    for module in list(model.modules()):
        corrected = CORRECTED_BLOCKS.get(type(module).__name__)
        if corrected is not None and _is_of_library(module):
            _derive_class(corrected, module)


def _derive_class(adapter: type[nn.Module], module: nn.Module) -> None:
    """Change the class of a module to one derived from `adapter`, then from its own class."""
    cls = type(module)
    module.__class__ = type(cls.__name__, (adapter, cls), {"__module__": adapter.__module__})


def _is_of_library(module: nn.Module) -> bool:
    return type(module).__module__.startswith("transformers.")
