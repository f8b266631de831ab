"""Cache layers that single models define in their own modules, by name: nothing is imported unless a model uses it.

For each of their tensors: where its rows are, and along which dimension positions run if rows of different lengths can
be made alike by padding. What depends on where a row begins (compressed windows) cannot: such rows join at equal
lengths.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """One tensor of a layer, or a dict of tensors: where its rows are, and its positions if it grows with them."""

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
"""Under transformers.models."""


def model_fields(kind: type) -> tuple[Field, ...] | None:
    """The tensors of exactly this class, None if it is not known."""
    return MODEL_LAYERS.get(f"{kind.__module__}.{kind.__qualname__}".removeprefix("transformers.models."))
