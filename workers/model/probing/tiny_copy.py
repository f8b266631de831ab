"""A scaled-down copy of a configuration: the same kinds of layers in the same order, sizes that run in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig

from ....errors import CheckpointError
from ..architecture import build_on_meta, model_class, takes_images
from .tiny_sizes import HEAD, HEADS, HIDDEN, cap_override, cap_size

MAX_LAYERS = 12
MAX_TOKENS = 1_000_000

_VISION_SIZES = {
    "depth": 1,
    "num_hidden_layers": 1,
    "hidden_size": HIDDEN,
    "intermediate_size": 32,
    "num_heads": HEADS,
    "num_attention_heads": HEADS,
    "num_position_embeddings": 16,
}

_NOT_PER_LAYER = frozenset({"architectures", "eos_token_id"})


def shrink(config: PreTrainedConfig, spare_layers: int = 0) -> PreTrainedConfig:
    """Return a small copy of the language model's configuration.

    It has `spare_layers` more layers than are needed to show every kind of layer.
    Raises CheckpointError if some kind of layer comes too late.
    """
    if takes_images(config):
        text = _shrink_text(config, spare_layers)
        parts: dict[str, Any] = {"text_config": text, "vision_config": _shrink_vision(config, text)}
        return type(config)(**config.to_dict() | parts)
    return _shrink_text(config, spare_layers)


def _shrink_vision(config: PreTrainedConfig, text: PreTrainedConfig) -> PreTrainedConfig:
    """Return one vision layer: only text is tried, but the model is built with a vision part."""
    vision = config.vision_config
    followers = {"out_hidden_size": text.hidden_size, "deepstack_visual_indexes": [0]}
    values = vision.to_dict()
    small = {name: min(values[name], size) for name, size in _VISION_SIZES.items() if name in values}
    return type(vision)(**values | small | {name: value for name, value in followers.items() if name in values})


def _shrink_text(config: PreTrainedConfig, spare_layers: int) -> PreTrainedConfig:
    text = config if config.is_encoder_decoder else config.get_text_config(decoder=True)
    values = text.to_dict()
    kinds = 2 if "encoder_layers" in values else layers_of_every_kind(text, config)  # one dense, one with experts
    layers = min(kinds + spare_layers, text.num_hidden_layers)
    small = {name: _shrink_value(name, value, text.num_hidden_layers, layers) for name, value in values.items()}
    if values.get("per_layer_config"):
        small["per_layer_config"] = _shrink_overrides(values, layers)
    return type(text)(**small | _dependent(text, values, layers))


def layers_of_every_kind(config: Any, whole: Any = None) -> int:
    """Return the number of layers, from the first on, that show every kind: periods and offsets stay as they are.

    `whole` is the configuration that `config` is the text part of, if it is one. Raises CheckpointError if that takes
    more than MAX_LAYERS.
    """
    built = whole if whole is not None and takes_images(whole) else config
    model_class(built)  # its module registers the cache layers that are its own
    caches = DynamicCache(config=config).layers
    structures = _structures(config, built)
    listed = _listed_by_layer(config)
    kinds = [
        (type(cache), structures[layer], tuple(words[layer] for words in listed)) for layer, cache in enumerate(caches)
    ]
    layers = max(kinds.index(kind) for kind in set(kinds)) + 1
    if layers > MAX_LAYERS:
        raise CheckpointError(f"its first {MAX_LAYERS} layers do not show every kind of layer", "config.json")
    return min(max(layers, 2), len(kinds))


def _structures(config: Any, built: Any) -> list[tuple[str, ...]]:
    """Return names and classes of the modules of every layer: its experts, its attention, its caches."""
    model = build_on_meta(built, torch.float32)
    for module in (model if built is config else model.get_decoder()).modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return [tuple(f"{name} {type(part).__name__}" for name, part in layer.named_modules()) for layer in module]
    return [()] * config.num_hidden_layers


def _listed_by_layer(config: Any) -> list[list[str]]:
    """Return the settings that have one word a layer."""
    values = config.to_dict().items()
    lists = [value for name, value in values if _is_per_layer(name, value, config.num_hidden_layers)]
    return [words for words in lists if all(isinstance(word, str) for word in words)]


def _is_per_layer(name: str, value: Any, layers: int) -> bool:
    return isinstance(value, list) and len(value) == layers and layers > 1 and name not in _NOT_PER_LAYER


def _shrink_value(name: str, value: Any, all_layers: int, layers: int) -> Any:
    if _is_per_layer(name, value, all_layers):
        return [cap_size(name.removesuffix("_per_layer"), item) for item in value[:layers]]
    return cap_size(name, value)


def _shrink_overrides(values: dict[str, Any], layers: int) -> dict[int, dict[str, Any]]:
    """Return the settings of single layers, cut down, for the layers that are left."""
    overrides = {int(layer): own for layer, own in values["per_layer_config"].items() if int(layer) < layers}
    return {
        layer: {name: cap_override(name, value, values.get(name)) for name, value in own.items()}
        | _fewer_heads(values | own)
        for layer, own in overrides.items()
    }


def _fewer_heads(values: dict[str, Any]) -> dict[str, int]:
    """Return fewer key-value heads: grouped-query attention stays grouped, other attention does not become so."""
    heads = values.get("num_key_value_heads")
    if heads is None:
        return {}
    return {"num_key_value_heads": min(heads, HEADS if heads == values.get("num_attention_heads") else HEADS // 2)}


def _whole_head(values: dict[str, Any]) -> dict[str, int]:
    """Return the width of latent attention's heads, which have a rotated part and one that is not."""
    overrides = (values.get("per_layer_config") or {}).values()
    return {"head_dim": 2 * HEAD} if any(_has_whole_head(values | own) for own in ({}, *overrides)) else {}


def _has_whole_head(values: dict[str, Any]) -> bool:
    rotated, plain = values.get("qk_rope_head_dim"), values.get("qk_nope_head_dim")
    return rotated is not None and plain is not None and rotated + plain == values.get("head_dim")


def _divided_width(values: dict[str, Any]) -> dict[str, int]:
    """Return a hidden width that divides into heads of even width (rotations go by pairs), if it defines them."""
    width, heads = values.get("hidden_size"), values.get("num_attention_heads")
    if not (isinstance(width, int) and isinstance(heads, int)) or values.get("head_dim"):
        return {}
    heads = cap_size("num_attention_heads", heads)
    return {"hidden_size": heads * HEAD} if cap_size("hidden_size", width) % (2 * heads) else {}


def _dependent(config: Any, values: dict[str, Any], layers: int) -> dict[str, Any]:
    """Return the settings that follow from the chosen layers and sizes."""
    result: dict[str, Any] = {"num_hidden_layers": layers, "initializer_range": 0.2, "eos_token_id": None}
    if values.get("mlp_only_layers") is not None:
        result["mlp_only_layers"] = [layer for layer in values["mlp_only_layers"] if layer < layers]
    if values.get("rope_parameters"):
        wide = values.get("head_dim") or config.hidden_size // config.num_attention_heads
        result["rope_parameters"] = _shorten_factors(cap_size("", values["rope_parameters"]), wide)
    if "expert_capacity" in values:
        result["expert_capacity"] = MAX_TOKENS  # the library's own count of it takes padding for tokens, ours does not
    if "moe_eval_capacity_token_fraction" in values:
        result["moe_eval_capacity_token_fraction"] = 1.0  # likewise; now nothing is dropped
    return result | _fewer_heads(values) | _whole_head(values) | _divided_width(values)


def _shorten_factors(parameters: dict[str, Any], wide: int) -> dict[str, Any]:
    """Cut lists by frequency down to the fewer frequencies: longrope has one factor each, M-RoPE divides them."""
    return {
        name: _shorten_factors(value, wide)
        if isinstance(value, dict)
        else value[: len(value) * HEAD // wide]
        if name in ("short_factor", "long_factor")
        else _share_out(value, sum(value) * HEAD // wide)
        if name == "mrope_section"
        else value
        for name, value in parameters.items()
    }


def _share_out(sections: list[int], count: int) -> list[int]:
    """Divide `count` frequencies among time, height and width, in any order: two equal sections stay equal."""
    odd = next((index for index, size in enumerate(sections) if sections.count(size) == 1), 0)
    return [count - 2 * (count // 3) if index == odd else count // 3 for index in range(3)]
