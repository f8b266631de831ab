"""A scaled-down copy of a configuration: the same kinds of layers in the same order, sizes that run in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig

from ...errors import CheckpointError
from .architecture import build_on_meta, model_class, takes_images
from .tiny_sizes import HEAD, HEADS, HIDDEN, smaller, smaller_override

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
    """A small copy of the language model's configuration, with so many layers more than its kinds of layers need.

    Raises CheckpointError for a configuration whose kinds of layers come too late.
    """
    if takes_images(config):
        text = _shrink_text(config, spare_layers)
        parts: dict[str, Any] = {"text_config": text, "vision_config": _shrink_vision(config, text)}
        return type(config)(**config.to_dict() | parts)
    return _shrink_text(config, spare_layers)


def _shrink_vision(config: PreTrainedConfig, text: PreTrainedConfig) -> PreTrainedConfig:
    """One layer that sees: text alone is tried, but the model is built with it."""
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
    small = {name: _shrunk(name, value, text.num_hidden_layers, layers) for name, value in values.items()}
    if values.get("per_layer_config"):
        small["per_layer_config"] = _shrunk_overrides(values, layers)
    return type(text)(**small | _dependent(text, values, layers))


def layers_of_every_kind(config: Any, whole: Any = None) -> int:
    """How many layers from the first one on show every kind of layer, so that periods and offsets stay as they are.

    `whole` is the configuration that `config` is the text part of, if it is one. Raises CheckpointError if that takes
    more than MAX_LAYERS.
    """
    built = whole if whole is not None and takes_images(whole) else config
    model_class(built)  # its module registers the cache layers that are its own
    caches = DynamicCache(config=config).layers
    structures = _structures(config, built)
    listed = _listed_by_layer(config)
    kinds = [
        (type(cache), structures[layer], tuple(each[layer] for each in listed)) for layer, cache in enumerate(caches)
    ]
    layers = max(kinds.index(kind) for kind in set(kinds)) + 1
    if layers > MAX_LAYERS:
        raise CheckpointError(f"its first {MAX_LAYERS} layers do not show every kind of layer", "config.json")
    return min(max(layers, 2), len(kinds))


def _structures(config: Any, built: Any) -> list[tuple[str, ...]]:
    """For every layer, which modules it is made of: dense or routed experts, which attention, shared or own caches."""
    model = build_on_meta(built, torch.float32)
    for module in (model if built is config else model.get_decoder()).modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return [tuple(f"{name} {type(part).__name__}" for name, part in layer.named_modules()) for layer in module]
    return [()] * config.num_hidden_layers


def _listed_by_layer(config: Any) -> list[list[str]]:
    """The configuration's own words for each layer."""
    values = config.to_dict().items()
    lists = [value for name, value in values if _is_per_layer(name, value, config.num_hidden_layers)]
    return [each for each in lists if all(isinstance(word, str) for word in each)]


def _is_per_layer(name: str, value: Any, layers: int) -> bool:
    return isinstance(value, list) and len(value) == layers and layers > 1 and name not in _NOT_PER_LAYER


def _shrunk(name: str, value: Any, all_layers: int, layers: int) -> Any:
    if _is_per_layer(name, value, all_layers):
        return [smaller(name.removesuffix("_per_layer"), each) for each in value[:layers]]
    return smaller(name, value)


def _shrunk_overrides(values: dict[str, Any], layers: int) -> dict[int, dict[str, Any]]:
    """What single layers have instead of the usual."""
    overrides = {int(layer): own for layer, own in values["per_layer_config"].items() if int(layer) < layers}
    return {
        layer: {name: smaller_override(name, value, values.get(name)) for name, value in own.items()}
        | _fewer_heads(values | own)
        for layer, own in overrides.items()
    }


def _fewer_heads(values: dict[str, Any]) -> dict[str, int]:
    """Grouped-query attention stays so, and any other stays what it is."""
    heads = values.get("num_key_value_heads")
    if heads is None:
        return {}
    return {"num_key_value_heads": min(heads, HEADS if heads == values.get("num_attention_heads") else HEADS // 2)}


def _whole_head(values: dict[str, Any]) -> dict[str, int]:
    """Heads of latent attention have a part that turns with the position and one that does not."""
    overrides = (values.get("per_layer_config") or {}).values()
    return {"head_dim": 2 * HEAD} if any(_has_whole_head(values | own) for own in ({}, *overrides)) else {}


def _has_whole_head(values: dict[str, Any]) -> bool:
    turned, still = values.get("qk_rope_head_dim"), values.get("qk_nope_head_dim")
    return turned is not None and still is not None and turned + still == values.get("head_dim")


def _divided_width(values: dict[str, Any]) -> dict[str, int]:
    """Where a head's width is what the heads leave of the hidden one: whole, and even, as rotations go by pairs."""
    width, heads = values.get("hidden_size"), values.get("num_attention_heads")
    if not (isinstance(width, int) and isinstance(heads, int)) or values.get("head_dim"):
        return {}
    heads = smaller("num_attention_heads", heads)
    return {"hidden_size": heads * HEAD} if smaller("hidden_size", width) % (2 * heads) else {}


def _dependent(config: Any, values: dict[str, Any], layers: int) -> dict[str, Any]:
    """What follows from the chosen layers and sizes."""
    result: dict[str, Any] = {"num_hidden_layers": layers, "initializer_range": 0.2, "eos_token_id": None}
    if values.get("mlp_only_layers") is not None:
        result["mlp_only_layers"] = [layer for layer in values["mlp_only_layers"] if layer < layers]
    if values.get("rope_parameters"):
        wide = values.get("head_dim") or config.hidden_size // config.num_attention_heads
        result["rope_parameters"] = _shorter_factors(smaller("", values["rope_parameters"]), wide)
    if "expert_capacity" in values:
        result["expert_capacity"] = MAX_TOKENS  # the library's own count of it takes padding for tokens, ours does not
    if "moe_eval_capacity_token_fraction" in values:
        result["moe_eval_capacity_token_fraction"] = 1.0  # likewise; now nothing is dropped
    return result | _fewer_heads(values) | _whole_head(values) | _divided_width(values)


def _shorter_factors(parameters: dict[str, Any], wide: int) -> dict[str, Any]:
    """longrope lists one factor a frequency, M-RoPE shares frequencies out; there are fewer of them now."""
    return {
        name: _shorter_factors(value, wide)
        if isinstance(value, dict)
        else value[: len(value) * HEAD // wide]
        if name in ("short_factor", "long_factor")
        else _shared_out(value, sum(value) * HEAD // wide)
        if name == "mrope_section"
        else value
        for name, value in parameters.items()
    }


def _shared_out(sections: list[int], count: int) -> list[int]:
    """So many frequencies for time, height and width, in whatever order: two sections that are alike stay alike."""
    odd = next((place for place, each in enumerate(sections) if sections.count(each) == 1), 0)
    return [count - 2 * (count // 3) if place == odd else count // 3 for place in range(3)]
