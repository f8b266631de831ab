"""The model as compute runs it: transformers' skeleton, its experts modules bound to slots, its other products fast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ..checkpoint.stamps import check_files
from ..checkpoint.survey import Survey
from ..kernels.dispatch import Kernels, LinearKernels
from ..kernels.native import BoundLinear, NativeKernels
from ..kernels.norms import NativeNorm, native_norm
from ..kernels.packed_matrix import PackedMatrix
from ..kernels.shapes import plain_linears
from ..model.architecture import EXPERTS_IMPLEMENTATION, experts_modules, load_skeleton
from ..model.gguf.skeleton_tensors import stored_blocks
from ..packed.packing import Packing
from .experts.hints import Hinter
from .experts.layer import ExpertFeed, ExpertsLayer, dispatch
from .experts.routing import RoutingCollector
from .lockstep.layer import LockstepLayer
from .lockstep.lockstep import Lockstep


class StreamedLinear(nn.Linear):
    """A linear layer that runs the kernel of the table for its shape: reading weights bounds a decode step.

    Linear layers of the library become this class in place and keep their parameters.
    """

    kernels: LinearKernels

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name is the library's
        """Return the projection of `input` [..., in], [..., out]; few rows stream the weights."""
        out = self.kernels(input.reshape(-1, self.in_features), self.weight, self.bias)
        return out.contiguous().view(*input.shape[:-1], self.out_features)


class PackedLinear(nn.Linear):
    """A linear layer that multiplies with the blocks of a GGUF file as they are stored.

    Its results are those of its values, rounded to the type of `product`, by the native kernels.
    """

    product: BoundLinear
    matrix: PackedMatrix
    native: NativeKernels

    @property
    def weight(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the values [out, in], made anew: for code of a family that looks at them."""
        return self.native.unpack(self.matrix, self.product.dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name is the library's
        """Return the projection of `input` [..., in], [..., out]. Raises TypeError for another type."""
        if input.dtype is not self.product.dtype:
            raise TypeError(f"rows are {input.dtype}, a packed linear layer takes {self.product.dtype}")
        return self.product(input.reshape(-1, self.in_features)).view(*input.shape[:-1], self.out_features)


class NativeNormMixin(nn.Module):
    """A norm that runs the native library's call on few rows, and its library's own way on all others."""

    native: NativeNorm

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the norms of `hidden` [..., width], of the same shape."""
        return self.native(hidden) if self.native.takes(hidden) else super().forward(hidden)


def load_model(survey: Survey, feed: ExpertFeed, routing: RoutingCollector) -> PreTrainedModel:
    """Load the skeleton on the CPU with every experts module bound to `feed`. Raises as `load_unbound` does."""
    model = load_unbound(survey)
    bind(model, feed, routing, survey)
    return model


def load_unbound(survey: Survey, device: torch.device | None = None) -> PreTrainedModel:
    """Load the skeleton on the CPU or a device; its experts modules are not bound to slots yet.

    Raises CheckpointError if a file cannot be read, or has changed since the survey.
    """
    ALL_EXPERTS_FUNCTIONS.register(EXPERTS_IMPLEMENTATION, dispatch)
    check_files(survey.stamps)
    model = load_skeleton(Path(survey.folder), getattr(torch, survey.dtype), survey.packed_linears)
    kernels = Kernels(survey.kernels)
    pack_linears(model, survey, kernels)
    check_files(survey.stamps)
    if device is not None and device.type != "cpu":
        return model.to(device)  # pyright: ignore[reportArgumentType]
    stream_linears(model, kernels)
    if kernels.native is not None:
        shorten_norms(model)
    return model


def stream_linears(model: nn.Module, kernels: Kernels) -> None:
    """Make every plain linear layer a `StreamedLinear`; leave subclasses, which may do more, as they are."""
    for _, module in list(plain_linears(model)):
        own = kernels.linear(module)
        module.__class__ = StreamedLinear
        cast(StreamedLinear, module).kernels = own


def pack_linears(model: nn.Module, survey: Survey, kernels: Kernels) -> None:
    """Make the linear layers whose weights stay packed multiply with the blocks of the file."""
    packed, native = survey.packed_linears, kernels.native
    if native is None:
        return
    for name, blocks in stored_blocks(Path(survey.folder), packed):
        module: Any = model.get_submodule(name.rpartition(".")[0])
        rows, columns = module.out_features, module.in_features
        packing = Packing(parameter=name, format=packed[name], rows=rows, columns=columns, codes="blocks")
        module.__class__, module.native = PackedLinear, native
        module.matrix = PackedMatrix(packing, {"blocks": blocks})
        module.product = native.bound_linear(module.matrix, module.bias, getattr(torch, survey.dtype))


@torch.inference_mode()
def shorten_norms(model: nn.Module) -> None:
    """Make every norm that the native library knows run there; each keeps its class as a base."""
    classes: dict[type[nn.Module], type[nn.Module]] = {}
    for module in list(model.modules()):
        if (norm := native_norm(module)) is not None:
            own = type(module)
            if own not in classes:
                classes[own] = type(own.__name__, (NativeNormMixin, own), {"__module__": own.__module__})
            module.__class__ = classes[own]
            cast(NativeNormMixin, module).native = norm


def bind(model: PreTrainedModel, feed: ExpertFeed, routing: RoutingCollector, survey: Survey) -> Lockstep:
    """Let every experts module get its experts from `feed` and compute them by the survey's kernel table.

    Returns what the rows of the model can run in lockstep with.
    """
    kernels, lockstep, parameters = Kernels(survey.kernels), Lockstep(), survey.parameters

    def make_layer(layer: int, module: Any) -> ExpertsLayer:
        own = kernels.expert(module, parameters, survey.dtype, survey.packings_of(layer))
        return LockstepLayer(layer, feed, routing, lockstep, own)

    bind_layers(model, make_layer)
    return lockstep


def bind_layers(model: PreTrainedModel, make_layer: Callable[[int, Any], ExpertsLayer]) -> None:
    """Give every experts module the layer that runs it, `make_layer(number, module)`."""
    for layer, (_, module) in enumerate(experts_modules(model)):
        module.expertflow_layer = make_layer(layer, module)  # pyright: ignore[reportArgumentType]


def attach(hinter: Hinter, model: PreTrainedModel) -> None:
    """Let every MoE layer report its routes to the hinter."""
    for _, module in experts_modules(model):
        module.expertflow_layer.hinter = hinter  # pyright: ignore
