"""NLLB-MoE: two experts a token, chosen by a router whose capacity is a share of a sequence's tokens.

transformers 5 hands its experts the router's mask, whose 0 and 1 they take for numbers: only two are ever computed.
Here a token's experts are those that the router weighs, as in transformers 4 and in fairseq. As with Switch, only
tokens use up capacity, and none in the decoder, which gets one token of a sequence at a time and never reaches it.

The library counts the decoder's positions from the length of the cache, padding included. A row padded on the left
would get other positions. One token at a time and unpadded, a token's position is the number of tokens before it:
`count_by_mask` makes it so always.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, one_hot, softmax

from .base import DECODER, stack_of
from .separate_experts import SeparateExperts, real_tokens

_EMBEDDING = "NllbMoeSinusoidalPositionalEmbedding"


class NllbExperts(SeparateExperts):
    """Adapter of `NllbMoeExperts`."""

    top_k = 2
    names = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    moe_token_dropout: float

    def run_expert(self, weights: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """Compute one expert on its rows [n, width], scaled as the library scales for dropout."""
        act: Any = self.get_submodule("expert_0.act")
        inner = act(linear(rows, weights["fc1.weight"], weights["fc1.bias"]))
        return linear(inner, weights["fc2.weight"], weights["fc2.bias"]) * (1 - self.moe_token_dropout)


class NllbBlock(nn.Module):
    """Adapter of `NllbMoeSparseMLP`."""

    path: str
    router: Any
    experts: Any

    def forward(self, hidden: torch.Tensor, padding_mask: Any = None) -> torch.Tensor:
        """Return the block's output for `hidden` [rows, columns, width]; a dropped token keeps its experts at weight 0.

        The step says which positions are padding, not the mask of attention.
        """
        self.router._cast_classifier()
        logits = self.router.classifier(hidden.to(self.router.dtype))
        probabilities = softmax(logits, dim=-1, dtype=self.router.dtype).to(hidden.dtype)
        index = _two_best(probabilities, logits)
        weights = self._weights(probabilities.gather(-1, index), self._within_capacity(index, probabilities))
        flat = hidden.reshape(-1, hidden.shape[-1])
        return self.experts(flat, index.reshape(-1, 2), weights.reshape(-1, 2)).view(hidden.shape)

    def _weights(self, probabilities: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        if self.router.normalize_router_prob_before_dropping:
            return _normalise(probabilities) * kept
        return _normalise(probabilities * kept)

    def _within_capacity(self, index: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """Return bool [rows, columns, 2]: choices within the capacity of their expert."""
        if stack_of(self.path) == DECODER:
            return torch.ones_like(index, dtype=torch.bool)
        real = self._real(index.shape[:-1])
        importance = probabilities.amax(dim=-1) if self.router.batch_prioritized_routing else None
        ranks = _ranks(one_hot(index, self.router.num_experts) * real[..., None, None], real, importance)
        return ranks.gather(-1, index.unsqueeze(-1)).squeeze(-1) < self._capacities(real)[:, None, None]

    def _capacities(self, real: torch.Tensor) -> torch.Tensor:
        """Return int64 [rows]: the number of choices of a row that each expert takes."""
        router = self.router
        fraction = router.moe_eval_capacity_token_fraction
        if real.is_meta or fraction <= 0:
            return torch.full(real.shape[:1], router.expert_capacity, device=real.device)
        counts = real.sum(dim=-1).tolist()
        return torch.tensor([math.ceil(fraction * count) for count in counts], device=real.device)

    def _real(self, shape: torch.Size) -> torch.Tensor:
        real = real_tokens(self.experts)
        device = self.router.classifier.weight.device
        return torch.ones(shape, dtype=torch.bool, device=device) if real is None else real.view(shape)


class CorrectedNllbBlock(nn.Module):
    """Corrected `NllbMoeSparseMLP` for a model with all its experts: gives the library's parts the right experts."""

    router: Any
    experts: Any

    def forward(self, hidden: torch.Tensor, padding_mask: Any = None) -> torch.Tensor:
        """Return the block's output for `hidden` [rows, columns, width], in the same shape."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        _, weights, _ = self.router(flat, padding_mask)
        out = torch.zeros_like(flat)
        for number in weights.any(dim=0).nonzero().flatten().tolist():
            tokens = weights[:, number].nonzero().squeeze(-1)
            expert_output = self.experts[f"expert_{number}"](flat[tokens]) * (1 - self.experts.moe_token_dropout)
            out[tokens] += expert_output * weights[tokens, number, None]
        return out.view(hidden.shape)


def _two_best(probabilities: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return int64 [..., 2]: the first by rounded probabilities, the second by logits, as the library chooses them."""
    first = probabilities.argmax(dim=-1, keepdim=True)
    return torch.cat([first, logits.scatter(-1, first, float("-inf")).argmax(dim=-1, keepdim=True)], dim=-1)


def _normalise(probabilities: torch.Tensor) -> torch.Tensor:
    return probabilities / probabilities.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(probabilities.dtype).eps)


def _ranks(choices: torch.Tensor, real: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    """Return the number of choices of an expert before each: [rows, columns, 2, experts], all first choices first.

    `choices`: one-hot of the same shape. The order is that of the tokens, or of their `importance` [rows, columns].
    """
    if importance is None:
        order = torch.arange(choices.shape[1], device=choices.device).expand(choices.shape[:2])
    else:
        order = importance.masked_fill(~real, -1).argsort(dim=1, descending=True, stable=True)
    indices = order[..., None, None].expand(choices.shape)
    ranked = choices.gather(1, indices).cumsum(dim=1) - 1
    ranks = torch.empty_like(ranked).scatter(1, indices, ranked)
    ranks[:, :, 1] += choices[:, :, 0].sum(dim=1, keepdim=True)
    return ranks


def count_by_mask(model: nn.Module) -> None:
    """Number the decoder's sinusoidal positions by its attention mask; other models stay as they are."""
    for path, module in model.named_modules():
        embedding = getattr(module, "embed_positions", None)
        if path.endswith(DECODER) and type(embedding).__name__ == _EMBEDDING:
            _PositionsByMask(module, embedding)


class _PositionsByMask:
    """Position ids of one decoder: notes its mask, then numbers its tokens."""

    def __init__(self, decoder: nn.Module, embedding: Any) -> None:
        self._mask: torch.Tensor | None = None
        self._library = embedding.create_position_ids_from_input_ids
        decoder.register_forward_pre_hook(self._note, with_kwargs=True)
        embedding.create_position_ids_from_input_ids = self._position_ids

    def _note(self, decoder: nn.Module, inputs: Any, options: dict[str, Any]) -> None:
        self._mask = options.get("attention_mask")

    def _position_ids(self, ids: torch.Tensor, padding_id: int, past: int = 0) -> torch.Tensor:
        """Return int64 [rows, columns], from padding_id + 1 on; the padding token itself has no position."""
        if self._mask is None:
            return self._library(ids, padding_id, past)
        mask = self._mask[:, -ids.shape[1] :]
        return self._mask.cumsum(dim=1)[:, -ids.shape[1] :] * mask * (ids != padding_id) + padding_id
