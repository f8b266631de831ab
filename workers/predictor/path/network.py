"""The path predictor's arithmetic in numpy. `training/module.py` is the same network; a test compares the two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .features import (
    COPY_FLOOR,
    EVIDENCE,
    FLOOR,
    GRAM_SCALE,
    RECENT_FLOOR,
    RECENT_SCALE,
    TABLE_SCALE,
    clear_tiny,
    count_bucket,
    distance_bucket,
)
from .file import PathShape
from .history import RecentRouting, RequestedTokens

Weights = dict[str, np.ndarray]
MAX_COPIED = 16
"""Earlier tokens whose routing is copied; the rest of their weight goes to the token table."""


@dataclass(frozen=True)
class TokenFeatures:
    """Features of N tokens by themselves, without their context."""

    probabilities: np.ndarray
    """float32 [N, width]: how likely the token uses the expert, by the token table."""
    log_ratios: np.ndarray
    """float32 [N, width]: log of those probabilities over the expert's popularity."""
    vectors: np.ndarray
    """float32 [N, 2 * code]"""


@dataclass(frozen=True)
class TokenPairs:
    """Relations of each requested token to each earlier one: all arrays [rows, tokens, past]."""

    distances: np.ndarray
    """int64: bucket of the distance."""
    same: np.ndarray
    """bool: the token ids are equal."""
    allowed: np.ndarray
    """bool: the other token is earlier, and within the window."""

    @staticmethod
    def of(requested: RequestedTokens, window: int) -> TokenPairs:
        """Relate the tokens to the last `window` tokens of their rows."""
        distances = requested.distances()
        allowed = (distances > 0) & (distances <= window)
        return TokenPairs(distance_bucket(distances), requested.same_token(), allowed)


class Network:
    """The weights, and the constants derived from them once. Weights are named as in `PathModule` and in the file."""

    def __init__(self, shape: PathShape, weights: Weights) -> None:
        self.shape, self._weights = shape, {name: _transpose(name, array) for name, array in weights.items()}
        self.popularity = weights["popularity"]
        self._log_popularity = np.log(np.maximum(self.popularity, FLOOR))
        self._log_recent_popularity = np.log(self.popularity + RECENT_FLOOR)

    def token_features(self, probabilities: np.ndarray, seen: np.ndarray, grams: np.ndarray | None) -> TokenFeatures:
        """Return the features from `probabilities` [N, width] and `seen` [N] sightings of the token table.

        `grams` int64 [N, MAX_GRAMS] are those of the tokens' strings.
        """
        log_ratios = self._log_ratios(probabilities, FLOOR)
        spelled = self._weights["count.weight"][count_bucket(seen)]
        if grams is not None:
            spelled = spelled + GRAM_SCALE * self._weights["grams.weight"][grams].sum(axis=1)
        counted = (log_ratios * np.float32(TABLE_SCALE)) @ self._weights["table.weight"]
        return TokenFeatures(probabilities, log_ratios, np.concatenate([spelled, counted], axis=1))

    def codes(self, multi_hot: np.ndarray) -> np.ndarray:
        """Return the embedding float32 [N, code] of routing `multi_hot` [N, width]."""
        return multi_hot @ self._weights["route.weight"]

    def keys_and_values(self, vectors: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return keys [N, heads * key + key] and values [N, code] by which later tokens attend to these N tokens.

        `vectors` [N, 2 * code] are those of `token_features`, `codes` [N, code] embed the tokens' routing.
        """
        content = np.concatenate([vectors, codes], axis=1)
        keys = [self._linear("attend_key", content), self._linear("copy_key", content)]
        return np.concatenate(keys, axis=1), self._linear("attend_value", content)

    def probabilities(self, features: TokenFeatures, recent: RecentRouting, requested: RequestedTokens) -> np.ndarray:
        """Return float32 [N, layers, experts]: how likely each of the N requested tokens uses each expert."""
        pairs = TokenPairs.of(requested, self.shape.window)
        readable = requested.past.has_routing[:, None, :] & pairs.allowed
        own, times = self._sum_routing(requested, (pairs.same & readable).astype(np.float32))
        hidden = self._input(features, recent, times)
        hidden = hidden + self._linear("leave", self._attend(hidden, requested, pairs))
        for number in range(self.shape.blocks):
            hidden = hidden + self._block(hidden, f"blocks.{number}")
        hidden = self._norm("norm", hidden)
        shares = keep_largest(self._copy_shares(hidden, requested, pairs) * readable)
        copied, weight = self._sum_routing(requested, shares)
        evidence = [
            features.log_ratios,
            self._log_ratios((own + features.probabilities) / (times + 1), FLOOR),
            recent.previous,
            self._log_ratios(copied + ((1 - weight) * features.probabilities + COPY_FLOOR)),
            *(np.log(recent.averages + RECENT_FLOOR) - self._log_recent_popularity).transpose(1, 0, 2),
        ]
        return self._output(hidden, evidence)

    def _log_ratios(self, probabilities: np.ndarray, floor: float = 0.0) -> np.ndarray:
        """Return the log of probabilities [N, width], raised to `floor`, over popularity."""
        logs = np.log(np.maximum(probabilities, np.float32(floor)))
        logs -= self._log_popularity
        return logs

    def _sum_routing(self, requested: RequestedTokens, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weighted sum of the routing of earlier tokens [N, width], and the sum of the weights [N, 1]."""
        return sum_routing(shares, requested.past.routes, self.shape.width), shares.sum(axis=2).reshape(-1, 1)

    def _input(self, features: TokenFeatures, recent: RecentRouting, times: np.ndarray) -> np.ndarray:
        own = self._weights["own_count.weight"][count_bucket(times[:, 0])]
        unknown = (1 - recent.has_previous) * self._weights["unknown"]
        averages = recent.average_codes.reshape(len(times), -1) * np.float32(RECENT_SCALE)
        parts = [features.vectors, recent.previous_code, own + unknown, averages]
        return self._linear("enter", self._norm("enter_norm", np.concatenate(parts, axis=1)))

    def _attend(self, hidden: np.ndarray, requested: RequestedTokens, pairs: TokenPairs) -> np.ndarray:
        rows, past, _ = requested.past.keys.shape
        heads, key = self.shape.heads, self.shape.key
        queries = self._linear("query", hidden).reshape(rows, -1, heads, key)
        keys = requested.past.keys[:, :, : heads * key].reshape(rows, past, heads, key)
        weights = attention_weights(queries, keys, self._weights["near"], self._weights["alike"], pairs)
        values = requested.past.values.reshape(rows, past, heads, -1).transpose(0, 2, 1, 3)
        return (weights @ values).transpose(0, 2, 1, 3).reshape(len(hidden), -1)

    def _copy_shares(self, hidden: np.ndarray, requested: RequestedTokens, pairs: TokenPairs) -> np.ndarray:
        """Return [rows, tokens, past]: the share of each earlier token's routing to copy."""
        key = self.shape.key
        queries = self._linear("copy_query", hidden).reshape(len(requested.tokens), -1, 1, key)
        near, alike = self._weights["copy_near"][None], self._weights["copy_alike"].reshape(1)
        return attention_weights(queries, requested.past.keys[:, :, None, -key:], near, alike, pairs)[:, 0]

    def _block(self, hidden: np.ndarray, name: str) -> np.ndarray:
        inner = self._linear(f"{name}.up", self._norm(f"{name}.norm", hidden))
        return self._linear(f"{name}.down", gelu(inner))

    def _output(self, hidden: np.ndarray, evidence: list[np.ndarray]) -> np.ndarray:
        """Return the probabilities: the sum of the weighted `evidence` [N, width] each, and an offset."""
        layers, experts = self.shape.layers, self.shape.experts
        gates = self._linear("gate", hidden).reshape(-1, layers, len(EVIDENCE), 1)
        logits = self._linear("out", hidden).reshape(-1, layers, experts)
        weighted = np.empty_like(logits)
        for number, logs in enumerate(evidence):
            logits += np.multiply(gates[:, :, number], logs.reshape(-1, layers, experts), out=weighted)
        return sigmoid(logits)

    def _linear(self, name: str, inputs: np.ndarray) -> np.ndarray:
        return inputs @ self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]

    def _norm(self, name: str, inputs: np.ndarray) -> np.ndarray:
        centred = inputs - inputs.mean(axis=1, keepdims=True)
        scale = np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + np.float32(1e-5))
        return centred / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def attention_weights(
    queries: np.ndarray, keys: np.ndarray, near: np.ndarray, alike: np.ndarray, pairs: TokenPairs
) -> np.ndarray:
    """Return float32 [rows, heads, tokens, past]: how much each token attends to each earlier one.

    `queries` [rows, tokens, heads, key], `keys` [rows, past, heads, key]; `near` [heads, DISTANCE_BUCKETS] is added by
    distance, and `alike` [heads] where the token ids are equal. The weights of a token sum to less than 1: the rest
    attends to nothing.
    """
    scale = np.float32(1 / np.sqrt(queries.shape[3]))
    scores = queries.transpose(0, 2, 1, 3) @ keys.transpose(0, 2, 3, 1)
    scores *= scale
    for head in range(len(near)):
        scores[:, head] += near[head][pairs.distances] + alike[head] * pairs.same
    scores = np.where(pairs.allowed[:, None], scores, -np.inf)
    highest = scores.max(axis=3, keepdims=True, initial=0.0)
    scores -= highest
    weights = np.exp(scores, out=scores)
    weights /= weights.sum(axis=3, keepdims=True) + np.exp(-highest)
    return clear_tiny(weights)


def sum_routing(shares: np.ndarray, routes: np.ndarray, width: int) -> np.ndarray:
    """Return float32 [rows * tokens, width]: the sum of the routing of earlier tokens, weighted by `shares`.

    `shares` [rows, tokens, past]; `routes` [rows, past, layers * top_k], layer * experts + expert.
    """
    count = shares.shape[0] * shares.shape[1]
    row, token, earlier = np.nonzero(shares)
    lines = row * shares.shape[1] + token
    indices = (lines[:, None] * width + routes[row, earlier]).ravel()
    weights = np.repeat(shares[row, token, earlier], routes.shape[2])
    return np.bincount(indices, weights=weights, minlength=count * width).reshape(count, width).astype(np.float32)


def keep_largest(shares: np.ndarray) -> np.ndarray:
    """Return `shares` [rows, tokens, past] with only the `MAX_COPIED` largest of each token, 0 for the others."""
    if shares.shape[2] <= MAX_COPIED:
        return shares
    least = np.partition(shares, -MAX_COPIED, axis=2)[:, :, -MAX_COPIED, None]
    return np.where(shares >= least, shares, np.float32(0))


def _transpose(name: str, array: np.ndarray) -> np.ndarray:
    """Return matrices as [inputs, outputs], which is a quarter faster than the other order; keep look-up tables."""
    table = array.ndim != 2 or name.startswith(("count.", "own_count.", "grams.", "near"))
    return array if table else np.ascontiguousarray(array.T)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the sigmoid, any shape, in place: a fresh array of this size costs more than the arithmetic."""
    np.negative(logits, out=logits)
    np.exp(logits, out=logits)
    logits += 1
    return np.reciprocal(logits, out=logits)


def gelu(inputs: np.ndarray) -> np.ndarray:
    """Return GELU in its tanh form, float32 of the same shape."""
    cubic = inputs * (1 + np.float32(0.044715) * inputs * inputs)
    return np.float32(0.5) * inputs * (1 + np.tanh(np.float32(0.7978845608) * cubic))
