"""Values of config.json without the settings that only other uses need. Without torch.

A checkpoint's configuration also says how its author ran or trained the model: with which attention kernel, with losses
of the routers, compiled, without a cache. Here none of it changes a result, and some of it makes transformers fail.
"""

from __future__ import annotations

import re
from typing import Any

from ...errors import CheckpointError

OVERRIDDEN = frozenset(
    {
        # Kernels: the library chooses one that this machine has
        "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
        "use_flash_attention_2", "use_flash_attn", "_flash_attn_2_enabled", "use_sdpa", "use_kernels", "kernel_config",
        # What a forward returns, and what a caller of the library asks of it
        "output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "use_return_dict",
        "torchscript", "use_cache", "cache_implementation", "cache_config", "compile_config", "disable_compile",
        "chunk_size_feed_forward", "pruned_heads", "is_encoder_decoder", "tie_encoder_decoder", "is_decoder",
        # Where its parts lie
        "device_map", "tp_plan", "pp_plan", "ep_plan", "distributed_config", "pretraining_tp",
        # Training, and other tasks
        "gradient_checkpointing", "router_aux_loss_coef", "router_z_loss_coef", "aux_loss_alpha", "seq_aux",
        "initializer_range", "initializer_factor",
        "problem_type", "id2label", "label2id", "num_labels", "finetuning_task", "task_specific_params",
    }
)  # fmt: skip
"""Settings removed at every level, so that the library's own default holds."""

_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_DROPOUT = re.compile(r"(?<!token_)(dropout|dropout_prob|dropout_rate|dropout_p|pdrop)$")
"""Dropout is for training. NLLB's moe_token_dropout is not: it scales the output of its experts in inference, too."""
_DEPTHS = re.compile(r"(^|_)((n_)?layers?|depths?)$")
_POSITIVE = frozenset({"num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "num_experts_per_tok"})
_MAX_LAYERS = 2_000
_MAX_INTEGER = 2**40
_ORIGINAL = "Compare it with the config.json of the original model"


def usable_values(values: dict[str, Any], file: str) -> dict[str, Any]:
    """Return a copy of a config.json without settings that only other uses need.

    Raises CheckpointError for a number that no model has and that would take hours or all memory to build.
    """
    _check_numbers(values, file, ())
    return _without_overridden(values)


def _without_overridden(values: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if not _is_overridden(key, value)}
    return {key: _without_overridden(value) if _is_config(key, value) else value for key, value in kept.items()}


def _is_config(key: str, value: Any) -> bool:
    return isinstance(value, dict) and key.endswith("_config") and key != "quantization_config"


def _is_overridden(key: str, value: Any) -> bool:
    if key in _ATTENTION:  # "eager" runs everywhere, and an author may have needed it
        return value != "eager"
    if key == "pad_token_id":  # no prompt is padded with it; one that is no number stops the library
        return isinstance(value, bool) or not isinstance(value, int | None)
    if key == "quantization_config":
        return not value
    return key in OVERRIDDEN or _DROPOUT.search(key) is not None


def _check_numbers(value: Any, file: str, path: tuple[str, ...]) -> None:
    match value:
        case dict():
            for key, nested in value.items():
                _check_numbers(nested, file, (*path, key))
        case list():
            for item in value:
                _check_numbers(item, file, path)
        case bool():
            pass
        case int() if path and abs(value) > _limit(path[-1]):
            what = f"{'.'.join(path)} is {shortened(value)}, more than any model has"
            raise CheckpointError(what, file, _ORIGINAL)
        case int() if path and path[-1] in _POSITIVE and value < 1:
            raise CheckpointError(f"{'.'.join(path)} is {value}, but must be at least 1", file, _ORIGINAL)
        case _:
            pass


def _limit(key: str) -> int:
    return _MAX_LAYERS if _DEPTHS.search(key) else _MAX_INTEGER


def shortened(value: Any, limit: int = 60) -> str:
    """Return a value in the notation of config.json, cut off after `limit` characters."""
    text = _json_text(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _json_text(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case int() if abs(value) >= 10**40:
            return "a number of more than 40 digits"
        case _:
            return str(value)
