"""The real architecture run without numbers, on the meta device: what its caches keep, what its routers choose."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config as fx_config
from transformers import PreTrainedConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ...errors import CheckpointError
from .architecture import build_on_meta, config_file, describe_faulty_config
from .configuration import first_line
from .encoder_decoder import library_cache, new_caches
from .growing_cache import new_cache
from .rope import rope_parameters

NO_EXPERTS = "expertflow-none"

PLAIN, COMPRESSING = (7, 15), (127, 255)
"""Lengths of the two prefills. Layers that a model defines itself may compress (some power of two) positions into one:
then so many that what waits to be compressed is as much as can be, both times."""


@dataclass
class DryRun:
    """What was seen of two prefills of one row."""

    lengths: tuple[int, int] = PLAIN
    cache_layers: list[list[Any]] = field(default_factory=list)
    """Of each prefill: its cache's layers afterwards."""
    top_ks: set[int] = field(default_factory=set)
    """How many experts a token was given to, in any layer."""

    def _instead_of_experts(self, module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Stands in for routed experts, whose loop over the experts that are hit needs numbers."""
        self.top_ks.add(top_k_index.shape[-1])
        return torch.zeros_like(hidden)


@torch.inference_mode()
def dry_run(config: PreTrainedConfig, dtype: torch.dtype) -> DryRun:
    """Prefill one row twice. Raises CheckpointError if the model does not run without numbers."""
    if dtype == torch.float16:  # some models look whether its numbers got too large, which takes numbers
        dtype = torch.bfloat16
    try:
        return _measured(config, dtype)
    except Exception as error:  # noqa: BLE001 - any model code may run here
        blamed = describe_faulty_config(config, lambda other: _measured(other, dtype))
        what = f"the size of its cache cannot be measured ({type(error).__name__}: {first_line(error)}){blamed}"
        raise CheckpointError(what, config_file(config), "Use a model that runs on the meta device") from error


def _measured(config: PreTrainedConfig, dtype: torch.dtype) -> DryRun:
    run = DryRun()
    ALL_EXPERTS_FUNCTIONS.register(NO_EXPERTS, run._instead_of_experts)
    config = _with_plain_rotation(config)
    config._experts_implementation = NO_EXPERTS
    model = build_on_meta(config, dtype).eval()
    run.lengths = COMPRESSING if _has_own_layers(model) else PLAIN
    with fx_config.patch(meta_nonzero_assume_all_nonzero=True):  # pyright: ignore[reportAttributeAccessIssue]
        for length in run.lengths:
            run.cache_layers.append(_layers_after(model, length))
    return run


def _with_plain_rotation(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy whose frequencies do not hang on the length: they ask for it, and here it is no number."""
    config = copy.deepcopy(config)
    for parameters in rope_parameters(config.get_text_config(decoder=True)):
        if parameters.get("rope_type") == "longrope" or "dynamic" in str(parameters.get("rope_type")):
            parameters["rope_type"] = "default"
    return config


def _has_own_layers(model: Any) -> bool:
    return any(type(layer).__module__.startswith("transformers.models.") for layer in new_cache(model.config).layers)


def _layers_after(model: Any, length: int) -> list[Any]:
    """The cache layers after a prefill of `length` positions."""
    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    if model.config.is_encoder_decoder:
        both = new_caches(model.config)
        model(input_ids=ids, decoder_input_ids=ids, past_key_values=library_cache(both))
        return both.layers
    cache = new_cache(model.config)
    model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache.layers
