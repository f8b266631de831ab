"""Cache layers that single models define in their own modules, by name, so that no unused module is imported.

For each tensor: its row dimension, and its position dimension if padding can give rows equal lengths. Padding cannot do
that for states that depend on where a row begins (compressed windows): such rows join at equal lengths only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """One tensor of a layer, or a dict of tensors: its row dimension, and its position dimension if it grows."""

    name: str
    row_dim: int = 0
    position_dim: int | None = None


ATTENTION = (Field("keys", position_dim=2), Field("values", position_dim=2))

_COMPRESSED = tuple(Field(name) for name in ("buffer_kv", "buffer_gate", "compressed_kv"))

MODEL_LAYERS: dict[str, tuple[Field, ...]] = {
    "deepseek_v4.modeling_deepseek_v4.DeepseekV4HCACache": ATTENTION + _COMPRESSED,
    "deepseek_v4.modeling_deepseek_v4.DeepseekV4CSACache": ATTENTION
    + _COMPRESSED
    + (Field("overlap_kv"), Field("overlap_gate")),
    "minimax_m3_vl.modeling_minimax_m3_vl.MiniMaxM3VLSparseCacheLayer": ATTENTION
    + (Field("idx_keys", position_dim=2),),
}
"""Tensors of each class, by module and name below transformers.models."""


def model_fields(cls: type) -> tuple[Field, ...] | None:
    """Return the tensors of exactly this class, None if it is not listed."""
    return MODEL_LAYERS.get(f"{cls.__module__}.{cls.__qualname__}".removeprefix("transformers.models."))
