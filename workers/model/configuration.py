"""From config.json to transformers' configuration, without settings that only other uses need. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from ...errors import CheckpointError
from ..checkpoint.config_values import shortened, usable_values
from ..checkpoint.faulty_setting import describe_faulty_setting

_MODELS = (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
_KNOWN = "Use a causal language model whose experts transformers dispatches itself (OLMoE, Mixtral, Qwen-MoE, ...)"


def build_configuration(values: dict[str, Any], folder: Path) -> PreTrainedConfig:
    """Return the library's configuration for the `values` of a folder's config.json.

    Raises CheckpointError, with the faulty key, for values that no class of the library accepts.
    """
    file = str(folder / "config.json")
    values = usable_values(values, file)
    model_type = run_as(values, file)
    values["model_type"] = model_type
    try:
        config = _construct(model_type, values, folder)
    except Exception as error:  # noqa: BLE001 - the classes check values in code of their own, each in its way
        defaults = default_values(CONFIG_MAPPING[model_type])
        fault = describe_faulty_setting(values, defaults, lambda other: _passes(model_type, other, folder))
        what = f"transformers cannot read its config.json ({first_line(error)}){fault}"
        raise CheckpointError(what, file, "Correct it: compare it with the original model's") from error
    _drop_padding(config)
    return config


def _construct(model_type: str, values: dict[str, Any], folder: Path) -> PreTrainedConfig:
    decoded = PreTrainedConfig._decode_special_floats(values)  # infinities, as the library writes them
    config = CONFIG_MAPPING[model_type].from_dict(decoded, name_or_path=str(folder))
    config.to_dict()  # what cannot be written down again cannot be copied either
    return config


def _passes(model_type: str, values: dict[str, Any], folder: Path) -> bool:
    try:
        _construct(model_type, values, folder)
    except Exception:  # noqa: BLE001 - as above
        return False
    return True


def default_values(cls: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return the defaults of a configuration class; empty if it cannot be made without values."""
    try:
        return cls().to_dict()
    except Exception:  # noqa: BLE001 - as above
        return {}


def _drop_padding(config: PreTrainedConfig) -> None:
    """Remove padding ids outside the vocabulary: they stop the library, and no prompt is padded with them."""
    for part in [config, *sub_configurations(config)]:
        size, padding = getattr(part, "vocab_size", None), getattr(part, "pad_token_id", None)
        if isinstance(size, int) and isinstance(padding, int) and not 0 <= padding < size:
            part.pad_token_id = None  # pyright: ignore[reportAttributeAccessIssue]


def sub_configurations(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield the configurations nested in one: of its text model, of its vision part."""
    for key in config.sub_configs:
        if isinstance(part := getattr(config, key, None), PreTrainedConfig):
            yield part


# Models under another name


def run_as(values: dict[str, Any], file: str = "config.json") -> str:
    """Return the model type of the library that a config.json describes: its own, else the one of its architecture.

    Raises CheckpointError if the library knows neither.
    """
    stated = values.get("model_type")
    if isinstance(stated, str) and stated in CONFIG_MAPPING:
        return stated
    found = _type_of_architecture(values)
    if found:
        return found
    architecture = shortened(values.get("architectures"))
    what = "transformers cannot read its config.json "
    what += f"(it knows neither model_type {shortened(stated)} nor architectures {architecture})"
    raise CheckpointError(what, file, _KNOWN)


def renaming_note(values: dict[str, Any]) -> str:
    """Return a sentence for a model that runs under another type; empty for a type that the library knows."""
    stated, used = values.get("model_type"), run_as(values)
    if stated == used:
        return ""
    by = shortened(values.get("architectures"))
    return f"transformers does not know model_type {shortened(stated)}: it runs as {used}, by its architectures {by}"


def _type_of_architecture(values: dict[str, Any]) -> str:
    named = values.get("architectures")
    wanted = {name for name in named if isinstance(name, str)} if isinstance(named, list) else set()
    found = [model_type for models in _MODELS for model_type, name in models.items() if wanted & _names(name)]
    nested = isinstance(values.get("text_config"), dict)
    fitting = [model_type for model_type in found if model_type.endswith("_text") != nested] or found
    return next((model_type for model_type in fitting if model_type in CONFIG_MAPPING), "")


def _names(name: Any) -> set[str]:
    return {name} if isinstance(name, str) else set(name)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text (two, if that one only announces the other), or its type."""
    first, *others = str(error).splitlines() or [""]
    if first.endswith(":") and others:
        return f"{first} {others[0].strip()}"
    return first or type(error).__name__
