"""Loss of a batch of sequences: the next item among the items of the batch, corrected for popularity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .model import NO_ITEM, Recommender
from .side import UsageMeter


def batch_loss(
    model: Recommender, states: Tensor, sequences: Tensor, log_popularity: Tensor, meters: list[UsageMeter] | None
) -> Tensor:
    """Return the mean cross-entropy of the next item at every position of `sequences`, int64 [users, n].

    NO_ITEM stands behind the last item. Candidates are the items of the batch, but for a user's own other items. From
    each logit the item's log popularity, float [all items], is taken off. `states` is float [modalities, 1 + layers,
    all items, width].
    """
    items, columns = torch.unique(sequences, return_inverse=True)
    has_padding = int(items[0] == NO_ITEM)
    items, columns = items[has_padding:], columns - has_padding
    vectors = model.encode_items(states[:, :, items], meters=meters)
    inputs, targets = columns[:, :-1], columns[:, 1:]
    after = model.users(vectors[inputs.clamp_min(0)])
    logits = after @ vectors.T - log_popularity[items]
    return functional.cross_entropy(
        mask_own(logits, columns, targets).flatten(0, 1), targets.flatten(), ignore_index=-1
    )


def mask_own(logits: Tensor, columns: Tensor, targets: Tensor) -> Tensor:
    """Return the logits [users, n, items] with a user's own items at -inf, but for the target of each position."""
    own = torch.zeros(logits.shape[0], logits.shape[2] + 1, dtype=torch.bool, device=logits.device)
    own.scatter_(1, columns.where(columns >= 0, logits.shape[2]), True)
    hidden = own[:, None, :-1].expand_as(logits).clone()
    hidden.scatter_(2, targets.clamp_min(0)[:, :, None], False)
    return logits.masked_fill(hidden, float("-inf"))


def log_popularity(items: Tensor, count: int) -> Tensor:
    """Return float [count]: the log of each item's share in `items`, int64; items that do not occur count once."""
    counts = torch.bincount(items, minlength=count).clamp_min(1).float()
    return (counts / counts.sum()).log()
