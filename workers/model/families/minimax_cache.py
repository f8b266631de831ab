"""Cache for MiniMax, which takes no cache but one of its own class.

That class keeps linear states where no row operation finds them. The subclass here keeps them in the library's layers
for linear attention, as other models do.
"""

from __future__ import annotations

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import LinearAttentionLayer
from transformers.models.minimax.modeling_minimax import MiniMaxCache


class MiniMaxRowCache(MiniMaxCache):
    """MiniMaxCache whose states are all in `layers`."""

    def __init__(self, config: PreTrainedConfig) -> None:
        DynamicCache.__init__(self, config=config)

    def __len__(self) -> int:
        return len(self.layers)

    def set_linear_cache(self, layer_idx: int, linear_cache: Tensor) -> None:
        """Keep the state [rows, heads, width, width] of a layer."""
        self._linear(layer_idx).update_recurrent_state(linear_cache)

    def get_linear_cache(self, layer_idx: int) -> Tensor | None:
        """Return the state [rows, heads, width, width] of a layer, None before its prefill."""
        return self._linear(layer_idx).recurrent_states[0]

    def _linear(self, layer_idx: int) -> LinearAttentionLayer:
        layer = self.layers[layer_idx]
        if not isinstance(layer, LinearAttentionLayer):
            raise TypeError(f"layer {layer_idx} of this model is a {type(layer).__name__}, not linear attention")
        return layer
