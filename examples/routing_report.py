"""Measures how a model routes real text: the shares of its experts, and how well the token alone predicts them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from transformers import PreTrainedModel

WINDOW_TOKENS = 512
_WINDOWS_A_BATCH = 8


@dataclass(frozen=True)
class Reading:
    """Loss and routing of a text: `loss_nats` a token, and the chosen expert ids, int64 [layers, tokens, k]."""

    loss_nats: float
    chosen: torch.Tensor


def read_text(model: PreTrainedModel, ids: torch.Tensor) -> Reading:
    """Run `ids` [tokens] through the model in windows of 512 tokens; every token but the first is predicted once."""
    losses: list[torch.Tensor] = []
    chosen: list[torch.Tensor] = []
    windows = _windows(ids)
    for start in range(0, len(windows), _WINDOWS_A_BATCH):
        batch = torch.stack(windows[start : start + _WINDOWS_A_BATCH])
        loss, experts = _read_batch(model, batch)
        losses.append(loss)
        chosen.append(experts)
    return Reading(float(torch.cat(losses).mean()), torch.cat(chosen, dim=1))


def _windows(ids: torch.Tensor) -> list[torch.Tensor]:
    """Cut `ids` into windows that share one token with the next; leave out a rest that fills none."""
    starts = range(0, len(ids) - WINDOW_TOKENS, WINDOW_TOKENS)
    return [ids[start : start + WINDOW_TOKENS + 1] for start in starts]


@torch.no_grad()
def _read_batch(model: PreTrainedModel, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    output = model(input_ids=batch[:, :-1], output_router_logits=True, use_cache=False)
    loss = functional.cross_entropy(output.logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="none")
    top_k: int = model.config.num_experts_per_tok
    return loss, torch.stack([logits.topk(top_k, dim=-1).indices for logits in output.router_logits])


def read_ids(ids: torch.Tensor) -> torch.Tensor:
    """Return the tokens whose routing `read_text` reports, in its order."""
    return torch.cat([window[:-1] for window in _windows(ids)])


def expert_shares(chosen: torch.Tensor, experts: int) -> torch.Tensor:
    """Return each expert's share of its layer's choices [layers, experts]; `chosen` is [layers, tokens, k]."""
    return torch.stack([torch.bincount(layer.flatten(), minlength=experts) / layer.numel() for layer in chosen])


def token_table(ids: torch.Tensor, chosen: torch.Tensor, vocabulary: int, experts: int) -> torch.Tensor:
    """Return P(expert | token id) [layers, vocabulary, experts], smoothed with the layer's popularity.

    A token never seen falls back to popularity alone.
    """
    popularity = expert_shares(chosen, experts) * chosen.shape[-1]
    keys = ids.unsqueeze(1) * experts
    size = vocabulary * experts
    counts = torch.stack([torch.bincount((keys + layer).flatten(), minlength=size) for layer in chosen])
    counts = counts.view(len(chosen), vocabulary, experts)
    seen = torch.bincount(ids, minlength=vocabulary).view(1, vocabulary, 1)
    return (counts + popularity.unsqueeze(1)) / (seen + 1)


def recall(scores: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return per layer the share of choices among the k best-scored experts [layers].

    `scores` is [layers, tokens or 1, experts], `chosen` [layers, tokens, k].
    """
    best = scores.topk(chosen.shape[-1], dim=-1).indices
    hits = (chosen.unsqueeze(-1) == best.unsqueeze(-2)).any(dim=-1)
    return hits.double().mean(dim=(1, 2))
