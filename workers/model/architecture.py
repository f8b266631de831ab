"""A checkpoint's architecture as transformers builds it: its class, its experts modules, its skeleton. Imports torch.

Models are recognised by structure: an experts module is one that transformers dispatches through its experts interface,
or one that an adapter made to look like it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)

from ...errors import CheckpointError
from ..checkpoint.config_file import read_config
from ..checkpoint.faulty_setting import describe_faulty_setting
from ..checkpoint.gguf.description import read_description
from ..checkpoint.headers import DTYPE_BYTES
from ..checkpoint.partial_models import has_no_vision
from ..checkpoint.quantisation_config import quantisation_of
from .configuration import build_configuration, default_values, first_line
from .dtypes import dtype_name
from .families.base import OutsideExperts
from .families.refusals import refuse_by_name
from .families.registry import adapt
from .gguf.skeleton_tensors import lazy_tensors
from .library_quantizer import set_dequantising

WITH_IMAGES = frozenset(
    {"aria", "ernie4_5_vl_moe", "glm4v_moe", "kimi_k25", "qwen3_5_moe", "qwen3_vl_moe", "qwen4_exp"}
)
"""Model types whose image prompts are known to be exact: others do more with images than scatter their features (mask
or number them by type), and a wrong answer would be silent."""
EXPERTS_IMPLEMENTATION = "expertflow"
_CORRECT = "Correct it: compare it with the original model's"
_SUPPORTED = "Use a causal language model whose experts transformers dispatches itself (OLMoE, Mixtral, Qwen-MoE, ...)"


def load_config(folder: Path, values: dict[str, Any] | None = None) -> PreTrainedConfig:
    """Return the configuration of a checkpoint folder; raises CheckpointError for a model that cannot be run.

    `values`: what its config.json holds, where that was read already.
    """
    values = read_config(folder) if values is None else values
    config = build_configuration(values, folder)
    if takes_images(config) and has_no_vision(folder, values):
        _name_text_class(config)
    config = _config_of_class(config)
    set_dequantising(config, quantisation_of(values))
    return config


def _name_text_class(config: PreTrainedConfig) -> None:
    """Let a configuration stand for its language model alone, if the library has a class for that."""
    text = _registered(MODEL_FOR_CAUSAL_LM_MAPPING, config)
    if text is not None:
        config.architectures = [text.__name__]


def _config_of_class(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the text part's configuration where the library loads such a model as its language model alone.

    A model whose images are taken keeps its whole configuration.
    """
    if takes_images(config):
        return config
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    wanted = getattr(found, "config_class", None)
    is_part = wanted is not None and wanted is config.sub_configs.get("text_config")
    return config.get_text_config() if is_part else config


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class of a configuration: a causal language model, else one of encoder and decoder.

    Returns the class that takes images if the type is in `WITH_IMAGES` and was published so. Raises CheckpointError if
    there is no class, or only one whose images are not known to be exact.
    """
    refuse_by_name(config)
    text = _registered(MODEL_FOR_CAUSAL_LM_MAPPING, config)
    if text is None and config.is_encoder_decoder:
        text = _registered(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, config)
    multimodal = _registered(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, config)
    if multimodal is not None and config.model_type in WITH_IMAGES:
        return multimodal if text is None or multimodal.__name__ in (config.architectures or []) else text
    if text is not None:
        return text
    if multimodal is not None:
        what = f"'{config.model_type}' is not a causal language model, and its images are not supported"
        raise CheckpointError(what, "config.json", f"With images these run: {', '.join(sorted(WITH_IMAGES))}")
    raise CheckpointError(f"'{config.model_type}' is not a causal language model", "config.json", _SUPPORTED)


def takes_images(config: PreTrainedConfig) -> bool:
    """Return whether the class of a configuration takes images."""
    if config.model_type not in WITH_IMAGES:
        return False
    return model_class(config) is _registered(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, config)


def _registered(mapping: Any, config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    found = mapping.get(type(config), None)
    return found[0] if isinstance(found, tuple) else found


def resolve_dtype(config: PreTrainedConfig, wanted: str, stored: str) -> torch.dtype:
    """Return the dtype to compute in: `wanted`; for auto the configuration's, else that of the `stored` weights.

    Raises CheckpointError for a dtype that is not supported.
    """
    if wanted != "auto":
        return getattr(torch, wanted)
    own = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or stored
    name = own if isinstance(own, str) else dtype_name(own)
    if name not in DTYPE_BYTES:
        remedy = "Choose a dtype, for example bfloat16"
        raise CheckpointError(f"asks for {name}, which is not supported", "config.json", remedy)
    return getattr(torch, name)


def experts_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield path and experts module of every MoE layer, in order: those in transformers' experts interface.

    Modules inside a block that an adapter turned into one experts module do not count.
    """
    block = None
    for name, module in model.named_modules():
        if block is not None and name.startswith(f"{block}."):
            continue
        if isinstance(module, OutsideExperts):
            block = name
        inside = hasattr(module, "_apply_gate") and hasattr(module, "has_gate") and hasattr(module, "num_experts")
        if inside or isinstance(module, OutsideExperts):
            yield name, module


def expert_parameters(module: Any) -> dict[str, torch.Tensor]:
    """Return the parameters of an experts module that have one slice an expert: [experts, ...]."""
    if isinstance(module, OutsideExperts):
        return module.expert_parameters()
    own = module.named_parameters(recurse=False)
    return {name: tensor for name, tensor in own if tensor.ndim >= 2 and tensor.shape[0] == module.num_experts}


def expert_names(path: str, module: Any) -> list[str]:
    """Return full names of the parameters that an experts module at `path` is made of."""
    outside = isinstance(module, OutsideExperts)
    names = module.parameter_names() if outside else list(expert_parameters(module))
    return [f"{path}.{name}" for name in names]


def build_on_meta(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Build the whole model without memory; raises CheckpointError for a configuration that its class rejects."""
    cls = model_class(config)
    try:
        model = _on_meta(cls, config, dtype)
    except Exception as error:  # noqa: BLE001 - any model code may run here
        fault = describe_faulty_config(config, lambda other: _on_meta(cls, other, dtype))
        what = f"{cls.__name__} cannot be built ({first_line(error)}){fault}"
        raise CheckpointError(what, config_file(config), _CORRECT) from error
    adapt(model)
    return model


def _on_meta(cls: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    with torch.device("meta"):
        return cls._from_config(config, dtype=dtype)


def describe_faulty_config(config: PreTrainedConfig, attempt: Callable[[PreTrainedConfig], object]) -> str:
    """Return `; KEY is VALUE` for the setting with whose default `attempt` does not raise, or nothing."""

    def works(values: dict[str, Any]) -> bool:
        try:
            attempt(type(config)(**values))
        except Exception:  # noqa: BLE001 - any model code may run here
            return False
        return True

    return describe_faulty_setting(config.to_dict(), default_values(type(config)), works)


def config_file(config: PreTrainedConfig) -> str:
    """Return the path of the config.json that a configuration was read from, or its bare name."""
    folder = config.name_or_path
    return str(Path(folder, "config.json")) if folder else "config.json"


def skeleton_class(cls: type[PreTrainedModel], left_out: Collection[str] = ()) -> type[PreTrainedModel]:
    """Return a subclass of a model class without routed experts; everything else loads through `from_pretrained`.

    Also without the weights `left_out`, by name, of linear layers.

    The library looks conversions up by class name and module, so both stay.
    """

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, *args, **kwargs)
        adapt(self)
        removed = [name for path, module in experts_modules(self) for name in expert_names(path, module)]
        for path, module in experts_modules(self):
            _skip_initialisation(self, path, module)
        for name in left_out:
            self.get_submodule(name.rpartition(".")[0])._is_hf_initialized = True
        removed += left_out
        for name in removed:
            path, _, parameter = name.rpartition(".")
            delattr(self.get_submodule(path), parameter)
        ignored = self._keys_to_ignore_on_load_unexpected or ()
        self._keys_to_ignore_on_load_unexpected = {*ignored, r"experts\.", *map(re.escape, removed)}

    return type(cls.__name__, (cls,), {"__init__": __init__, "__module__": cls.__module__})


def _skip_initialisation(model: nn.Module, path: str, experts: nn.Module) -> None:
    """Keep the library from initialising parameters that are gone, some of them from the block above the experts."""
    block = [model.get_submodule(path.rpartition(".")[0])] if isinstance(experts, OutsideExperts) else []
    for module in [*block, *experts.modules()]:
        module._is_hf_initialized = True  # pyright: ignore[reportArgumentType]


def load_skeleton(folder: Path, dtype: torch.dtype, left_out: Collection[str] = ()) -> PreTrainedModel:
    """Load the model without its routed experts, every other tensor exactly as `from_pretrained` gives it.

    `left_out`: names of weights of a GGUF model's linear layers that are not loaded.

    Raises CheckpointError if a file can no longer be read.
    """
    config = load_config(folder)
    cls = skeleton_class(model_class(config), left_out)
    options: dict[str, Any] = {"dtype": dtype, "experts_implementation": EXPERTS_IMPLEMENTATION}
    described = read_description(folder)
    try:
        if described is not None:
            tensors = lazy_tensors(described, config.to_dict())
            tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
            return cls.from_pretrained(None, config=config, state_dict=tensors, **options).eval()
        return cls.from_pretrained(folder, config=config, **options).eval()
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the library meets in files that were surveyed a moment ago
        what = f"its files cannot be read ({first_line(error)})"
        raise CheckpointError(what, str(folder), "They were surveyed a moment ago: leave them alone") from error
