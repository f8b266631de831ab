"""The path predictor's arithmetic in numpy. `training/module.py` is the same network; a test compares the two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .attention import View, attend, largest, read_routing_at
from .features import COPY_FLOOR, EVIDENCE, FLOOR, GRAM_SCALE, RECENT_FLOOR, RECENT_SCALE, TABLE_SCALE, count_bucket
from .history import Asked, Recent
from .shape import PathShape

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Words:
    """Tokens by themselves, whatever is around them."""

    used: np.ndarray
    """float32 [N, width]: how likely the token uses the expert, by the token table."""
    surprise: np.ndarray
    """float32 [N, width]: log of that over the expert's popularity."""
    vector: np.ndarray
    """float32 [N, 2 * code]"""


class Network:
    """Weights and what is worked out from them once."""

    def __init__(self, shape: PathShape, weights: Weights) -> None:
        self.shape, self._weights = shape, {name: _turned(name, array) for name, array in weights.items()}
        self.popularity = weights["popularity"]
        self._log_popularity = np.log(np.maximum(self.popularity, FLOOR))
        self._log_recent_popularity = np.log(self.popularity + RECENT_FLOOR)

    def words(self, used: np.ndarray, seen: np.ndarray, grams: np.ndarray | None) -> Words:
        """`used` [N, width] and `seen` [N] from the token table; `grams` int64 [N, MAX_GRAMS] of the strings."""
        surprise = self._surprise(used, FLOOR)
        spelled = self._weights["count.weight"][count_bucket(seen)]
        if grams is not None:
            spelled = spelled + GRAM_SCALE * self._weights["grams.weight"][grams].sum(axis=1)
        known = (surprise * np.float32(TABLE_SCALE)) @ self._weights["table.weight"]
        return Words(used, surprise, np.concatenate([spelled, known], axis=1))

    def codes(self, hot: np.ndarray) -> np.ndarray:
        """float32 [N, code] of routing [N, width] that is 1 where a token went."""
        return hot @ self._weights["route.weight"]

    def contents(self, vectors: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys [N, heads * key + key] and values [N, code] of tokens, for those that come after.

        `vectors` [N, 2 * code] are those of `words`.
        """
        content = np.concatenate([vectors, codes], axis=1)
        keys = [self._linear("attend_key", content), self._linear("copy_key", content)]
        return np.concatenate(keys, axis=1), self._linear("attend_value", content)

    def probabilities(self, words: Words, recent: Recent, asked: Asked) -> np.ndarray:
        """float32 [N, layers, experts]: how likely each of the N tokens asked for uses each expert."""
        view = View.of(asked, self.shape.window)
        known = asked.past.known[:, None, :] & view.allowed
        own, times = self._read(asked, (view.same & known).astype(np.float32))
        hidden = self._enter(words, recent, times)
        hidden = hidden + self._linear("leave", self._attended(hidden, asked, view))
        for number in range(self.shape.blocks):
            hidden = hidden + self._block(hidden, f"blocks.{number}")
        hidden = self._norm("norm", hidden)
        copied, weight = self._read(asked, largest(self._copied(hidden, asked, view) * known))
        evidence = [
            words.surprise,
            self._surprise((own + words.used) / (times + 1), FLOOR),
            recent.previous,
            self._surprise(copied + ((1 - weight) * words.used + COPY_FLOOR)),
            *(np.log(recent.averages + RECENT_FLOOR) - self._log_recent_popularity).transpose(1, 0, 2),
        ]
        return self._decided(hidden, evidence)

    def _surprise(self, used: np.ndarray, floor: float = 0.0) -> np.ndarray:
        """Log of probabilities [N, width], at least `floor`, over popularity."""
        logs = np.log(np.maximum(used, np.float32(floor)))
        logs -= self._log_popularity
        return logs

    def _read(self, asked: Asked, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted sum of the routing of earlier tokens [N, width], and the sum of the weights [N, 1]."""
        return read_routing_at(shares, asked.past.routes, self.shape.width), shares.sum(axis=2).reshape(-1, 1)

    def _enter(self, words: Words, recent: Recent, times: np.ndarray) -> np.ndarray:
        own = self._weights["own_count.weight"][count_bucket(times[:, 0])]
        unknown = (1 - recent.known) * self._weights["unknown"]
        averages = recent.average_codes.reshape(len(times), -1) * np.float32(RECENT_SCALE)
        parts = [words.vector, recent.previous_code, own + unknown, averages]
        return self._linear("enter", self._norm("enter_norm", np.concatenate(parts, axis=1)))

    def _attended(self, hidden: np.ndarray, asked: Asked, view: View) -> np.ndarray:
        rows, past, _ = asked.past.keys.shape
        heads, key = self.shape.heads, self.shape.key
        queries = self._linear("query", hidden).reshape(rows, -1, heads, key)
        keys = asked.past.keys[:, :, : heads * key].reshape(rows, past, heads, key)
        weights = attend(queries, keys, self._weights["near"], self._weights["alike"], view)
        values = asked.past.values.reshape(rows, past, heads, -1).transpose(0, 2, 1, 3)
        return (weights @ values).transpose(0, 2, 1, 3).reshape(len(hidden), -1)

    def _copied(self, hidden: np.ndarray, asked: Asked, view: View) -> np.ndarray:
        """[rows, tokens, past]: how much of the routing of each earlier token to copy."""
        key = self.shape.key
        queries = self._linear("copy_query", hidden).reshape(len(asked.tokens), -1, 1, key)
        near, alike = self._weights["copy_near"][None], self._weights["copy_alike"].reshape(1)
        return attend(queries, asked.past.keys[:, :, None, -key:], near, alike, view)[:, 0]

    def _block(self, hidden: np.ndarray, name: str) -> np.ndarray:
        inner = self._linear(f"{name}.up", self._norm(f"{name}.norm", hidden))
        return self._linear(f"{name}.down", gelu(inner))

    def _decided(self, hidden: np.ndarray, evidence: list[np.ndarray]) -> np.ndarray:
        layers, experts = self.shape.layers, self.shape.experts
        gates = self._linear("gate", hidden).reshape(-1, layers, len(EVIDENCE), 1)
        decided = self._linear("out", hidden).reshape(-1, layers, experts)
        weighed = np.empty_like(decided)
        for number, one in enumerate(evidence):
            decided += np.multiply(gates[:, :, number], one.reshape(-1, layers, experts), out=weighed)
        return sigmoid(decided)

    def _linear(self, name: str, inputs: np.ndarray) -> np.ndarray:
        return inputs @ self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]

    def _norm(self, name: str, inputs: np.ndarray) -> np.ndarray:
        centred = inputs - inputs.mean(axis=1, keepdims=True)
        scale = np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + np.float32(1e-5))
        return centred / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def _turned(name: str, array: np.ndarray) -> np.ndarray:
    """Matrices as [inputs, outputs]: a quarter faster than the other way round; look-up tables stay."""
    table = array.ndim != 2 or name.startswith(("count.", "own_count.", "grams.", "near"))
    return array if table else np.ascontiguousarray(array.T)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """In place: a fresh array of this size costs more than the arithmetic."""
    np.negative(logits, out=logits)
    np.exp(logits, out=logits)
    logits += 1
    return np.reciprocal(logits, out=logits)


def gelu(inputs: np.ndarray) -> np.ndarray:
    """The tanh form."""
    cubic = inputs * (1 + np.float32(0.044715) * inputs * inputs)
    return np.float32(0.5) * inputs * (1 + np.tanh(np.float32(0.7978845608) * cubic))
