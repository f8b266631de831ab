"""Runs the real architecture on the meta device, without numbers, to see its cache layers and its top-k."""

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
"""Lengths of the two prefills. Layers that a model defines itself may compress a power of two of positions into one.
Then both lengths leave as many positions waiting for compression as there can be."""


@dataclass
class DryRun:
    """Cache layers and top-k seen in two prefills of one row."""

    lengths: tuple[int, int] = PLAIN
    cache_layers: list[list[Any]] = field(default_factory=list)
    """For each prefill, the layers of its cache afterwards."""
    top_ks: set[int] = field(default_factory=set)
    """Numbers of experts that a token was given to, in any layer."""

    def _replace_experts(self, module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Stand in for routed experts, whose loop over the experts that are hit needs numbers."""
        self.top_ks.add(top_k_index.shape[-1])
        return torch.zeros_like(hidden)


@torch.inference_mode()
def dry_run(config: PreTrainedConfig, dtype: torch.dtype) -> DryRun:
    """Prefill one row twice. Raises CheckpointError if the model does not run without numbers."""
    if dtype == torch.float16:  # some models check its values for overflow, which takes numbers
        dtype = torch.bfloat16
    try:
        return _run_twice(config, dtype)
    except Exception as error:  # noqa: BLE001 - any model code may run here
        fault = describe_faulty_config(config, lambda other: _run_twice(other, dtype))
        what = f"the size of its cache cannot be measured ({type(error).__name__}: {first_line(error)}){fault}"
        raise CheckpointError(what, config_file(config), "Use a model that runs on the meta device") from error


def _run_twice(config: PreTrainedConfig, dtype: torch.dtype) -> DryRun:
    run = DryRun()
    ALL_EXPERTS_FUNCTIONS.register(NO_EXPERTS, run._replace_experts)
    config = _with_plain_rotation(config)
    config._experts_implementation = NO_EXPERTS
    model = build_on_meta(config, dtype).eval()
    run.lengths = COMPRESSING if _has_own_layers(model) else PLAIN
    with fx_config.patch(meta_nonzero_assume_all_nonzero=True):  # pyright: ignore[reportAttributeAccessIssue]
        for length in run.lengths:
            run.cache_layers.append(_layers_after(model, length))
    return run


def _with_plain_rotation(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy whose frequencies do not depend on the length, which is no number here."""
    config = copy.deepcopy(config)
    for parameters in rope_parameters(config.get_text_config(decoder=True)):
        if parameters.get("rope_type") == "longrope" or "dynamic" in str(parameters.get("rope_type")):
            parameters["rope_type"] = "default"
    return config


def _has_own_layers(model: Any) -> bool:
    return any(type(layer).__module__.startswith("transformers.models.") for layer in new_cache(model.config).layers)


def _layers_after(model: Any, length: int) -> list[Any]:
    """Return the cache layers after a prefill of `length` positions."""
    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    if model.config.is_encoder_decoder:
        both = new_caches(model.config)
        model(input_ids=ids, decoder_input_ids=ids, past_key_values=library_cache(both))
        return both.layers
    cache = new_cache(model.config)
    model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache.layers
