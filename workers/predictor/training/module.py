"""The path predictor as a torch module, for whole sequences at once; `path/network.py` is the same in numpy.

A few sequences of routing are little to learn from. Most of the information therefore enters as evidence that the
network only weighs: the token table, the routing of the same token earlier in the sequence, of the token before and of
recent tokens, and routing copied from similar earlier tokens. A small network adds an offset. The module predicts all
layers of a token at once, and never looks at the token's own routing or at later tokens.
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
from ..path.file import PathShape

MASKED = -1e4
DROPPED_HIDDEN = 0.3
DROPPED_INPUT = 0.2
FIRST_GATES = (0.6, 0.3, 0.1, 0.3, *(0.1 for _ in RECENT_DECAYS))
"""Initial weights of the evidence, near those after training."""


@dataclass(frozen=True)
class Batch:
    """Sequences, or pieces of sequences, padded to one length T."""

    tokens: Tensor
    """int64 [B, T]"""
    grams: Tensor | None
    """int64 [B, T, MAX_GRAMS]"""
    multi_hot: Tensor
    """float32 [B, T, width]: 1 for the experts that the token used."""
    table_probabilities: Tensor
    """float32 [B, T, width]: probabilities by the token table, made without this sequence."""
    seen: Tensor
    """[B, T]: sightings behind `table_probabilities`."""
    has_routing: Tensor
    """bool [B, T]: a later token may look at this token's routing."""
    valid: Tensor
    """bool [B, T]: not padding."""


@dataclass(frozen=True)
class _TokenPairs:
    """Relations of each token to each other one of its sequence: [.., T, T], the looking token first."""

    allowed: Tensor
    distances: Tensor
    same: Tensor


class PathModule(nn.Module):
    """The network; `forward` returns logits [B, T, layers, experts].

    Its attributes name the weights in a predictor file, so their names must stay.
    """

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
        self._initialise()

    def _initialise(self) -> None:
        """Start as a plain mixture of the evidence."""
        for layer in (self.gate, self.out):
            nn.init.zeros_(layer.weight)
        self.gate.bias.data = torch.tensor(FIRST_GATES).repeat(self.shape.layers)
        self.out.bias.data = torch.logit(self.popularity.clamp(FLOOR, 1 - FLOOR))
        if self.grams is not None:
            nn.init.normal_(self.grams.weight, std=0.05)
            self.grams.weight.data[-1] = 0

    def forward(self, batch: Batch) -> Tensor:
        """Return logits [B, T, layers, experts]; a token's own routing does not enter them."""
        pairs, log_popularity = self._pairs(batch), torch.log(self.popularity.clamp_min(FLOOR))
        has_routing = batch.has_routing[..., None].float()
        shown = batch.multi_hot * has_routing
        log_ratios = torch.log(batch.table_probabilities.clamp_min(FLOOR)) - log_popularity
        vectors = self._vectors(batch, log_ratios)
        codes = self.route(self._drop_inputs(shown))
        content = torch.cat([vectors, codes], dim=-1)
        same = (pairs.same & pairs.allowed & batch.has_routing[:, None, :]).float()
        times = same.sum(dim=-1, keepdim=True)
        own = (same @ batch.multi_hot + batch.table_probabilities) / (times + 1)
        has_previous = _shift(has_routing, 1.0)
        recent = [
            self._recent(shown, has_routing, decay) * has_previous + self.popularity * (1 - has_previous)
            for decay in RECENT_DECAYS
        ]
        hidden = self._input(vectors, _shift(codes, 0.0), recent, times, has_previous)
        hidden = hidden + self.leave(self._attend(hidden, content, pairs))
        for block in self.blocks:
            hidden = hidden + functional.dropout(block(hidden), DROPPED_HIDDEN / 2, self.training)
        hidden = functional.dropout(self.norm(hidden), DROPPED_HIDDEN, self.training)
        evidence = [
            log_ratios,
            torch.log(own.clamp_min(FLOOR)) - log_popularity,
            _shift(shown, 0.0),
            torch.log(self._copy(hidden, content, pairs, batch) + COPY_FLOOR) - log_popularity,
            *(torch.log(average + RECENT_FLOOR) - torch.log(self.popularity + RECENT_FLOOR) for average in recent),
        ]
        return self._output(hidden, evidence)

    def _pairs(self, batch: Batch) -> _TokenPairs:
        indices = torch.arange(batch.tokens.shape[1])
        distances = indices[:, None] - indices[None, :]
        allowed = (distances > 0) & (distances <= self.shape.window)
        same = batch.tokens[:, :, None] == batch.tokens[:, None, :]
        return _TokenPairs(allowed, torch.from_numpy(distance_bucket(distances.numpy())), same)

    def _vectors(self, batch: Batch, log_ratios: Tensor) -> Tensor:
        """Return [B, T, 2 * code], embeddings of the tokens without their context."""
        spelled = self.count(torch.from_numpy(count_bucket(batch.seen.numpy())))
        if self.grams is not None and batch.grams is not None:
            bags = self.grams(batch.grams.flatten(0, 1)).view(*batch.tokens.shape, -1)
            spelled = spelled + GRAM_SCALE * bags
        return torch.cat([spelled, self.table(self._drop_inputs(log_ratios) * TABLE_SCALE)], dim=-1)

    def _recent(self, shown: Tensor, has_routing: Tensor, decay: float) -> Tensor:
        """Return a decayed average of the routing before each token; popularity weighs as RECENT_PRIOR tokens."""
        indices = torch.arange(shown.shape[1])
        ages = indices[:, None] - indices[None, :] - 1
        weights = torch.where(ages >= 0, decay ** ages.clamp_min(0).float(), 0.0)
        return (weights @ shown + RECENT_PRIOR * self.popularity) / (weights @ has_routing + RECENT_PRIOR)

    def _input(
        self, vectors: Tensor, previous: Tensor, recent: list[Tensor], times: Tensor, has_previous: Tensor
    ) -> Tensor:
        own = self.own_count(torch.from_numpy(count_bucket(times[..., 0].numpy())))
        averages = [self.route(self._drop_inputs(average)) * RECENT_SCALE for average in recent]
        parts = [vectors, previous, own + (1 - has_previous) * self.unknown, *averages]
        mixed = self.enter_norm(torch.cat(parts, dim=-1))
        return self.enter(functional.dropout(mixed, DROPPED_INPUT / 2, self.training))

    def _attend(self, hidden: Tensor, content: Tensor, pairs: _TokenPairs) -> Tensor:
        heads = self.shape.heads
        queries, keys = _split_heads(self.query(hidden), heads), _split_heads(self.attend_key(content), heads)
        bias = self.near[:, pairs.distances] + self.alike[:, None, None] * pairs.same[:, None]
        weights = _attention_weights(queries, keys, bias, pairs.allowed)
        return (weights @ _split_heads(self.attend_value(content), heads)).transpose(1, 2).flatten(2)

    def _copy(self, hidden: Tensor, content: Tensor, pairs: _TokenPairs, batch: Batch) -> Tensor:
        """Return probabilities [B, T, width] copied from similar earlier tokens, and the rest from the token table."""
        queries, keys = self.copy_query(hidden)[:, None], self.copy_key(content)[:, None]
        bias = self.copy_near[pairs.distances] + self.copy_alike * pairs.same
        weights = _attention_weights(queries, keys, bias[:, None], pairs.allowed)[:, 0] * batch.has_routing[:, None, :]
        return weights @ batch.multi_hot + (1 - weights.sum(dim=-1, keepdim=True)) * batch.table_probabilities

    def _output(self, hidden: Tensor, evidence: list[Tensor]) -> Tensor:
        sizes = (*hidden.shape[:2], self.shape.layers, self.shape.experts)
        gates = self.gate(hidden).view(*sizes[:3], len(EVIDENCE))
        logits = self.out(hidden).view(sizes).float()
        for number, logs in enumerate(evidence):
            logits = logits + gates[..., number, None] * logs.view(sizes)
        return logits

    def _drop_inputs(self, inputs: Tensor) -> Tensor:
        """Drop some of the experts, the same ones for a whole sequence: cheaper than a choice for every token."""
        return inputs * functional.dropout(torch.ones_like(inputs[:, :1]), DROPPED_INPUT, self.training)


class _Block(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(hidden), nn.Linear(hidden, inner), nn.Linear(inner, hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = functional.gelu(self.up(self.norm(hidden)), approximate="tanh")
        return self.down(functional.dropout(inner, DROPPED_HIDDEN, self.training))


def _attention_weights(queries: Tensor, keys: Tensor, bias: Tensor, allowed: Tensor) -> Tensor:
    """Return [B, heads, T, T]; a token may also attend to nothing, which scores 0."""
    scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5 + bias
    scores = scores.float().masked_fill(~allowed, MASKED)
    nothing = torch.zeros_like(scores[..., :1])
    return torch.cat([scores, nothing], dim=-1).softmax(dim=-1)[..., :-1] * allowed


def _split_heads(inputs: Tensor, heads: int) -> Tensor:
    return inputs.unflatten(-1, (heads, -1)).transpose(1, 2)


def _shift(inputs: Tensor, first: float) -> Tensor:
    """Return the values of the token before, `first` for the first token."""
    return functional.pad(inputs, (0, 0, 1, 0), value=first)[:, :-1]
