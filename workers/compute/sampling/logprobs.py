"""Log-probabilities of tokens in the model's own distribution: before settings, penalties, masks and temperature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ....ipc.messages import TokenLogprob

MAX_ELEMENTS = 2**20
"""Logits that are in float64 at the same time: 8 MiB, and as much again for each temporary."""


def token_logprobs(logits: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    """Return an entry for token i under logits [tokens, vocabulary], with the `counts[i]` likeliest tokens beside it.

    The log-softmax is float64. The order of equally likely tokens is that of their ids, on every device.
    """
    size = max(1, MAX_ELEMENTS // logits.shape[1])
    parts = [slice(start, start + size) for start in range(0, len(tokens), size)]
    return [entry for part in parts for entry in _entries(logits[part], tokens[part], counts[part])]


def _entries(logits: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> Iterator[TokenLogprob]:
    scores = logits.double()
    index = torch.tensor(tokens, device=scores.device)[:, None]
    chosen = scores.gather(1, index)
    ranks = ((scores > chosen).sum(dim=1) + 1).tolist()
    totals = scores.logsumexp(dim=1)
    logprobs = (chosen[:, 0] - totals).tolist()
    for row, token in enumerate(tokens):
        top = _likeliest(scores[row], counts[row])
        values = (scores[row][top] - totals[row]).tolist()
        yield TokenLogprob(token, logprobs[row], ranks[row], list(zip(top.tolist(), values, strict=True)))


def _likeliest(scores: Tensor, count: int) -> Tensor:
    """Return the ids of the `count` largest scores [vocabulary], the largest first, equals in order of their ids."""
    count = min(count, len(scores))
    if not count:
        return torch.empty(0, dtype=torch.long, device=scores.device)
    least = scores.topk(count).values[-1]
    ids = (scores >= least).nonzero()[:, 0]
    return ids[scores[ids].argsort(descending=True, stable=True)[:count]]
