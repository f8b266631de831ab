"""The path predictor as a torch module, for whole sequences at once; `path/network.py` is the same in numpy.

Routing of few sequences is little to learn from, so most of what is known enters as evidence that is only weighed:
the token table, the routing of the same token earlier in the sequence, of the token before, of recent tokens, and
routing copied from earlier tokens that look similar. What a small network adds to it is an offset. All of it is
for one token at all layers, and none of it looks at the token's own routing or at later tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from ..path.features import (
    COPY_FLOOR,
    COUNT_BUCKETS,
    DISTANCE_BUCKETS,
    EVIDENCE,
    FLOOR,
    GRAM_SCALE,
    RECENT_DECAYS,
    RECENT_FLOOR,
    RECENT_PRIOR,
    RECENT_SCALE,
    TABLE_SCALE,
    count_bucket,
    distance_bucket,
)
from ..path.shape import PathShape

NOWHERE = -1e4
DROPPED_HIDDEN = 0.3
DROPPED_INPUT = 0.2
FIRST_GATES = (0.6, 0.3, 0.1, 0.3, *(0.1 for _ in RECENT_DECAYS))
"""Roughly where the weights of the evidence end up."""


@dataclass(frozen=True)
class Batch:
    """Sequences, or pieces of such, padded to one length T."""

    tokens: Tensor
    """int64 [B, T]"""
    grams: Tensor | None
    """int64 [B, T, MAX_GRAMS]"""
    routes: Tensor
    """float32 [B, T, width]: 1 where a token went."""
    used: Tensor
    """float32 [B, T, width]: probabilities by the token table, made without this sequence."""
    seen: Tensor
    """[B, T]: sightings behind `used`."""
    known: Tensor
    """bool [B, T]: a later token may look at this token's routing."""
    valid: Tensor
    """bool [B, T]: not padding."""


@dataclass(frozen=True)
class _Looks:
    """Who may look at whom in a batch: [.., T, T] from the token that looks to the one that is looked at."""

    allowed: Tensor
    distances: Tensor
    same: Tensor


class PathModule(nn.Module):
    """`forward` gives logits [B, T, layers, experts]."""

    popularity: Tensor

    def __init__(self, shape: PathShape, popularity: Tensor) -> None:
        super().__init__()
        code, hidden, heads = shape.code, shape.hidden, shape.heads
        entering = (4 + len(RECENT_DECAYS)) * code
        self.shape = shape
        self.register_buffer("popularity", popularity)
        self.count = nn.Embedding(COUNT_BUCKETS, code)
        self.own_count = nn.Embedding(COUNT_BUCKETS, code)
        self.unknown = nn.Parameter(torch.zeros(code))
        self.grams = (
            nn.EmbeddingBag(shape.grams + 1, code, mode="sum", padding_idx=shape.grams) if shape.grams else None
        )
        self.table = nn.Linear(shape.width, code, bias=False)
        self.route = nn.Linear(shape.width, code, bias=False)
        self.enter_norm, self.enter = nn.LayerNorm(entering), nn.Linear(entering, hidden)
        self.query, self.attend_key = nn.Linear(hidden, heads * shape.key), nn.Linear(3 * code, heads * shape.key)
        self.attend_value, self.leave = nn.Linear(3 * code, code), nn.Linear(code, hidden)
        self.near = nn.Parameter(torch.zeros(heads, DISTANCE_BUCKETS))
        self.alike = nn.Parameter(torch.zeros(heads))
        self.blocks = nn.ModuleList([_Block(hidden, shape.inner) for _ in range(shape.blocks)])
        self.norm = nn.LayerNorm(hidden)
        self.copy_query, self.copy_key = nn.Linear(hidden, shape.key), nn.Linear(3 * code, shape.key)
        self.copy_near = nn.Parameter(torch.zeros(DISTANCE_BUCKETS))
        self.copy_alike = nn.Parameter(torch.tensor(3.0))
        self.gate = nn.Linear(hidden, shape.layers * len(EVIDENCE))
        self.out = nn.Linear(hidden, shape.width)
        self._start()

    def _start(self) -> None:
        """Begin as a plain mixture of the evidence."""
        for layer in (self.gate, self.out):
            nn.init.zeros_(layer.weight)
        self.gate.bias.data = torch.tensor(FIRST_GATES).repeat(self.shape.layers)
        self.out.bias.data = torch.logit(self.popularity.clamp(FLOOR, 1 - FLOOR))
        if self.grams is not None:
            nn.init.normal_(self.grams.weight, std=0.05)
            self.grams.weight.data[-1] = 0

    def forward(self, batch: Batch) -> Tensor:
        looks, log_popularity = self._looks(batch), torch.log(self.popularity.clamp_min(FLOOR))
        known = batch.known[..., None].float()
        open_routes = batch.routes * known
        surprise = torch.log(batch.used.clamp_min(FLOOR)) - log_popularity
        word = self._word(batch, surprise)
        codes = self.route(self._dropped(open_routes))
        content = torch.cat([word, codes], dim=-1)
        same = (looks.same & looks.allowed & batch.known[:, None, :]).float()
        times = same.sum(dim=-1, keepdim=True)
        own = (same @ batch.routes + batch.used) / (times + 1)
        before = _shifted(known, 1.0)
        recent = [
            self._recent(open_routes, known, decay) * before + self.popularity * (1 - before) for decay in RECENT_DECAYS
        ]
        hidden = self._enter(word, _shifted(codes, 0.0), recent, times, before)
        hidden = hidden + self.leave(self._attended(hidden, content, looks))
        for block in self.blocks:
            hidden = hidden + functional.dropout(block(hidden), DROPPED_HIDDEN / 2, self.training)
        hidden = functional.dropout(self.norm(hidden), DROPPED_HIDDEN, self.training)
        evidence = [
            surprise,
            torch.log(own.clamp_min(FLOOR)) - log_popularity,
            _shifted(open_routes, 0.0),
            torch.log(self._copied(hidden, content, looks, batch) + COPY_FLOOR) - log_popularity,
            *(torch.log(one + RECENT_FLOOR) - torch.log(self.popularity + RECENT_FLOOR) for one in recent),
        ]
        return self._decided(hidden, evidence)

    def _looks(self, batch: Batch) -> _Looks:
        places = torch.arange(batch.tokens.shape[1])
        distances = places[:, None] - places[None, :]
        allowed = (distances > 0) & (distances <= self.shape.window)
        same = batch.tokens[:, :, None] == batch.tokens[:, None, :]
        return _Looks(allowed, torch.from_numpy(distance_bucket(distances.numpy())), same)

    def _word(self, batch: Batch, surprise: Tensor) -> Tensor:
        spelled = self.count(torch.from_numpy(count_bucket(batch.seen.numpy())))
        if self.grams is not None and batch.grams is not None:
            bags = self.grams(batch.grams.flatten(0, 1)).view(*batch.tokens.shape, -1)
            spelled = spelled + GRAM_SCALE * bags
        return torch.cat([spelled, self.table(self._dropped(surprise) * TABLE_SCALE)], dim=-1)

    def _recent(self, routes: Tensor, known: Tensor, decay: float) -> Tensor:
        """Decayed average of the routing before each token; popularity counts as much as RECENT_PRIOR tokens."""
        places = torch.arange(routes.shape[1])
        ages = places[:, None] - places[None, :] - 1
        weights = torch.where(ages >= 0, decay ** ages.clamp_min(0).float(), 0.0)
        return (weights @ routes + RECENT_PRIOR * self.popularity) / (weights @ known + RECENT_PRIOR)

    def _enter(self, word: Tensor, previous: Tensor, recent: list[Tensor], times: Tensor, before: Tensor) -> Tensor:
        own = self.own_count(torch.from_numpy(count_bucket(times[..., 0].numpy())))
        averages = [self.route(self._dropped(one)) * RECENT_SCALE for one in recent]
        parts = [word, previous, own + (1 - before) * self.unknown, *averages]
        mixed = self.enter_norm(torch.cat(parts, dim=-1))
        return self.enter(functional.dropout(mixed, DROPPED_INPUT / 2, self.training))

    def _attended(self, hidden: Tensor, content: Tensor, looks: _Looks) -> Tensor:
        heads = self.shape.heads
        queries, keys = _heads(self.query(hidden), heads), _heads(self.attend_key(content), heads)
        bias = self.near[:, looks.distances] + self.alike[:, None, None] * looks.same[:, None]
        weights = _attention(queries, keys, bias, looks.allowed)
        return (weights @ _heads(self.attend_value(content), heads)).transpose(1, 2).flatten(2)

    def _copied(self, hidden: Tensor, content: Tensor, looks: _Looks, batch: Batch) -> Tensor:
        """Probabilities [B, T, width] read off similar earlier tokens; the token table has the rest of the weight."""
        queries, keys = self.copy_query(hidden)[:, None], self.copy_key(content)[:, None]
        bias = self.copy_near[looks.distances] + self.copy_alike * looks.same
        weights = _attention(queries, keys, bias[:, None], looks.allowed)[:, 0] * batch.known[:, None, :]
        return weights @ batch.routes + (1 - weights.sum(dim=-1, keepdim=True)) * batch.used

    def _decided(self, hidden: Tensor, evidence: list[Tensor]) -> Tensor:
        sizes = (*hidden.shape[:2], self.shape.layers, self.shape.experts)
        gates = self.gate(hidden).view(*sizes[:3], len(EVIDENCE))
        decided = self.out(hidden).view(sizes).float()
        for number, one in enumerate(evidence):
            decided = decided + gates[..., number, None] * one.view(sizes)
        return decided

    def _dropped(self, inputs: Tensor) -> Tensor:
        """Without some of the experts, the same ones for a whole sequence: cheaper than a choice for every token."""
        return inputs * functional.dropout(torch.ones_like(inputs[:, :1]), DROPPED_INPUT, self.training)


class _Block(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(hidden), nn.Linear(hidden, inner), nn.Linear(inner, hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = functional.gelu(self.up(self.norm(hidden)), approximate="tanh")
        return self.down(functional.dropout(inner, DROPPED_HIDDEN, self.training))


def _attention(queries: Tensor, keys: Tensor, bias: Tensor, allowed: Tensor) -> Tensor:
    """[B, heads, T, T]; a token may also attend to nothing, which scores 0."""
    scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5 + bias
    scores = scores.float().masked_fill(~allowed, NOWHERE)
    nothing = torch.zeros_like(scores[..., :1])
    return torch.cat([scores, nothing], dim=-1).softmax(dim=-1)[..., :-1] * allowed


def _heads(inputs: Tensor, heads: int) -> Tensor:
    return inputs.unflatten(-1, (heads, -1)).transpose(1, 2)


def _shifted(inputs: Tensor, first: float) -> Tensor:
    """What belongs to the token before."""
    return functional.pad(inputs, (0, 0, 1, 0), value=first)[:, :-1]
