"""The path predictor's arithmetic in numpy. `training/module.py` is the same network; a test compares the two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .looking import look_back, remembered
from .mixing import (
    COPY_FLOOR,
    EVIDENCE,
    FLOOR,
    GRAM_SCALE,
    RECENT_FLOOR,
    RECENT_SCALE,
    TABLE_SCALE,
    count_bucket,
)
from .past import Asked, Recent
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
        self.shape, self._weights = shape, weights
        self.popularity = weights["popularity"]
        self._log_popularity = np.log(np.maximum(self.popularity, FLOOR))
        self._log_recent_popularity = np.log(self.popularity + RECENT_FLOOR)

    def words(self, used: np.ndarray, seen: np.ndarray, grams: np.ndarray | None) -> Words:
        """`used` [N, width] and `seen` [N] from the token table; `grams` int64 [N, MOST_GRAMS] of the strings."""
        surprise = np.log(np.maximum(used, FLOOR)) - self._log_popularity
        spelled = self._weights["count.weight"][count_bucket(seen)]
        if grams is not None:
            spelled = spelled + GRAM_SCALE * self._weights["grams.weight"][grams].sum(axis=1)
        known = (surprise * np.float32(TABLE_SCALE)) @ self._weights["table.weight"].T
        return Words(used, surprise, np.concatenate([spelled, known], axis=1))

    def codes(self, hot: np.ndarray) -> np.ndarray:
        """float32 [N, code] of routing [N, width] that is 1 where a token went."""
        return hot @ self._weights["route.weight"].T

    def contents(self, words: Words, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys [N, heads * key + key] and values [N, code] of tokens, for those that come after."""
        content = np.concatenate([words.vector, codes], axis=1)
        keys = [self._linear("attend_key", content), self._linear("copy_key", content)]
        return np.concatenate(keys, axis=1), self._linear("attend_value", content)

    def probabilities(self, words: Words, recent: Recent, asked: list[Asked]) -> np.ndarray:
        """float32 [N, layers, experts]: how likely each token uses each expert."""
        own, times = remembered(asked, self.shape.width)
        own = (own + words.used) / (times + 1)
        hidden = self._enter(words, recent, times)
        hidden = hidden + self._linear("leave", self._attended(hidden, asked))
        for number in range(self.shape.blocks):
            hidden = hidden + self._block(hidden, f"blocks.{number}")
        hidden = self._norm("norm", hidden)
        copied, weight = self._copied(hidden, asked)
        copied = copied + (1 - weight) * words.used
        evidence = [
            words.surprise,
            np.log(np.maximum(own, FLOOR)) - self._log_popularity,
            recent.previous,
            np.log(copied + COPY_FLOOR) - self._log_popularity,
            *(np.log(recent.averages + RECENT_FLOOR) - self._log_recent_popularity).transpose(1, 0, 2),
        ]
        return self._decided(hidden, evidence)

    def _enter(self, words: Words, recent: Recent, times: np.ndarray) -> np.ndarray:
        own = self._weights["own_count.weight"][count_bucket(times[:, 0])]
        unknown = (1 - recent.known) * self._weights["unknown"]
        averages = recent.average_codes.reshape(len(times), -1) * np.float32(RECENT_SCALE)
        parts = [words.vector, recent.previous_code, own + unknown, averages]
        return self._linear("enter", self._norm("enter_norm", np.concatenate(parts, axis=1)))

    def _attended(self, hidden: np.ndarray, asked: list[Asked]) -> np.ndarray:
        heads, key, weights = self.shape.heads, self.shape.key, self._weights
        queries = self._linear("query", hidden).reshape(-1, heads, key)
        found = np.zeros((len(hidden), self.shape.code), dtype=np.float32)
        for one in asked:
            keys = one.past.keys[:, : heads * key].reshape(-1, heads, key)
            attention = look_back(
                one, queries[one.first : one.end], keys, weights["near"], weights["alike"], self.shape.window
            )
            values = one.past.values.reshape(-1, heads, self.shape.code // heads).transpose(1, 0, 2)
            read = (attention @ values).transpose(1, 0, 2)
            found[one.first : one.end] = read.reshape(-1, self.shape.code)
        return found

    def _copied(self, hidden: np.ndarray, asked: list[Asked]) -> tuple[np.ndarray, np.ndarray]:
        """Routing of similar earlier tokens [N, width], and how much of it there is [N, 1]."""
        weights, start = self._weights, self.shape.heads * self.shape.key
        queries = self._linear("copy_query", hidden)[:, None, :]
        near, alike = weights["copy_near"][None], weights["copy_alike"].reshape(1)
        shares = []
        for one in asked:
            keys = one.past.keys[:, None, start:]
            share = look_back(one, queries[one.first : one.end], keys, near, alike, self.shape.window)[0]
            shares.append(share * one.past.known)
        return remembered(asked, self.shape.width, shares)

    def _block(self, hidden: np.ndarray, name: str) -> np.ndarray:
        inner = self._linear(f"{name}.up", self._norm(f"{name}.norm", hidden))
        return self._linear(f"{name}.down", gelu(inner))

    def _decided(self, hidden: np.ndarray, evidence: list[np.ndarray]) -> np.ndarray:
        layers, experts = self.shape.layers, self.shape.experts
        gates = self._linear("gate", hidden).reshape(-1, layers, len(EVIDENCE), 1)
        decided = self._linear("out", hidden).reshape(-1, layers, experts)
        for number, one in enumerate(evidence):
            decided += gates[:, :, number] * one.reshape(-1, layers, experts)
        return 1 / (1 + np.exp(-decided))

    def _linear(self, name: str, inputs: np.ndarray) -> np.ndarray:
        return inputs @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, name: str, inputs: np.ndarray) -> np.ndarray:
        centred = inputs - inputs.mean(axis=1, keepdims=True)
        scale = np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + np.float32(1e-5))
        return centred / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def gelu(inputs: np.ndarray) -> np.ndarray:
    """The tanh form."""
    cubic = inputs * (1 + np.float32(0.044715) * inputs * inputs)
    return np.float32(0.5) * inputs * (1 + np.tanh(np.float32(0.7978845608) * cubic))
