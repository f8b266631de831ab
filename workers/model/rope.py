"""Length limits of rotary embeddings whose frequencies depend on the length of the batch."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


def rope_limits(config: PreTrainedConfig) -> int | None:
    """Return the largest length at which a row depends neither on its neighbours nor on its past; None: no limit.

    `dynamic` rescales all frequencies with the longest row beyond the original length; cached keys keep the old ones.
    `longrope` changes to other frequencies there, for the whole batch. Both are exact up to the original length.
    """
    text = config.get_text_config(decoder=True)
    limits = [_limit(text, parameters) for parameters in rope_parameters(text)]
    return min((limit for limit in limits if limit is not None), default=None)


def rope_parameters(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """Return the parameters of the model, or of each of its layer types."""
    own = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in own.values() if isinstance(value, dict)]
    return nested or [own]


def _limit(config: Any, parameters: dict[str, Any]) -> int | None:
    rope_type = parameters.get("rope_type", "default")
    if "dynamic" in rope_type:
        return int(config.max_position_embeddings)
    if rope_type == "longrope":
        return int(parameters.get("original_max_position_embeddings") or config.max_position_embeddings)
    return None
