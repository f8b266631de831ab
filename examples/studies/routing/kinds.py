"""The six kinds of routing that the study compares, all in one architecture (Qwen3-VL-MoE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ..vlm.architectures import EXPERTS, TOP_K, WIDTH
from ..vlm.routers import router_modules
from ..vlm.training import new_model
from .fixed_routers import HashRouter, ModalityRouter, TokenContext

ARCHITECTURE = "qwen3_vl_moe"
Router = Literal["learned", "modality", "hash"]


@dataclass(frozen=True)
class Kind:
    """A way to choose experts, or none."""

    name: str
    what: str
    experts: int = EXPERTS
    top_k: int = TOP_K
    width: int = WIDTH
    router: Router = "learned"
    specialised: bool = False
    """Trained with the SMoES loss."""

    @property
    def active_width(self) -> int:
        """Return the neurons that a token uses in a layer."""
        return self.top_k * self.width

    @property
    def total_width(self) -> int:
        """Return the neurons of a layer."""
        return self.experts * self.width

    @property
    def served(self) -> bool:
        """Return whether the runtime serves it as it is: its router is the architecture's own."""
        return self.router == "learned"


KINDS = (
    Kind("soft", "any expert for any token, top-2 of 16"),
    Kind("smoes", "as soft, trained with the SMoES loss", specialised=True),
    Kind("hard", "8 experts for text, 8 for images, top-2 within", router="modality"),
    Kind("hash", "2 of 16 by a fixed hash of the token", router="hash"),
    Kind("dense-active", "one expert as wide as two", experts=1, top_k=1, width=TOP_K * WIDTH),
    Kind("dense-total", "one expert as wide as all 16", experts=1, top_k=1, width=EXPERTS * WIDTH),
)
BY_NAME = {kind.name: kind for kind in KINDS}


def kind_model(kind: Kind, vocabulary: int, seed: int) -> nn.Module:
    """Return a model of this kind with random weights."""
    sizes = {"num_experts": kind.experts, "num_experts_per_tok": kind.top_k, "moe_intermediate_size": kind.width}
    model = new_model(ARCHITECTURE, vocabulary, seed, **sizes)
    if kind.router != "learned":
        _install_routers(model, kind)
    return model


def _install_routers(model: nn.Module, kind: Kind) -> None:
    context = TokenContext(model)
    for layer, router in enumerate(router_modules(model)):
        learned: Any = router
        fixed = HashRouter(context, learned, layer) if kind.router == "hash" else ModalityRouter(context, learned)
        _parent(model, router).gate = fixed


def _parent(model: nn.Module, router: nn.Module) -> Any:
    return next(module for module in model.modules() if getattr(module, "gate", None) is router)
