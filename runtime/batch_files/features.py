"""Features by which lines are ordered: the begin of the prompt, and the experts that its tokens are likely to use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ...workers.predictor.path.token_forecast import TokenForecast
from .ordering import PREFIX_CHARACTERS, LineFeatures, prefix_digests

WIDTH = 256
"""Numbers that a line is described by; 64 told domains apart less well."""
TAIL_CHARACTERS, TAIL_TOKENS = 512, 128
"""Part of a prompt that is forecast: its end, which is nearest to the output. Shared prefixes say little."""
MAX_TOKENS = 32_768
"""Tokens whose vectors are kept: 32 MiB."""
Encode = Callable[[str], list[int]]


class PromptText(NamedTuple):
    """A prompt as text, and its ids if the request gives ids."""

    text: str
    ids: list[int] | None = None


class TokenVectors:
    """A vector for each token id, made at its first use: its forecast experts projected onto `WIDTH` directions."""

    def __init__(self, forecast: TokenForecast | None) -> None:
        """Without a forecast a token's vector is random: lines of common words are near each other then."""
        self._forecast = forecast
        self._of: dict[int, np.ndarray] = {}
        self._projection: np.ndarray | None = None

    def sum(self, ids: list[int]) -> np.ndarray:
        """Return float32 [WIDTH]: the sum over distinct ids, divided by the root of their number."""
        distinct = list(dict.fromkeys(ids))
        if len(self._of) + len(distinct) > MAX_TOKENS:
            self._of.clear()
        if missing := [token for token in distinct if token not in self._of]:
            self._of.update(zip(missing, self._make(np.array(missing, dtype=np.int64)), strict=True))
        vectors = np.array([self._of[token] for token in distinct], dtype=np.float32).reshape(-1, WIDTH)
        return vectors.sum(axis=0) / np.sqrt(max(len(distinct), 1))

    def _make(self, ids: np.ndarray) -> np.ndarray:
        """Return float32 [ids, WIDTH]."""
        if self._forecast is None:
            draws = [np.random.default_rng(token).standard_normal(WIDTH, dtype=np.float32) for token in ids.tolist()]
            return np.stack(draws)
        probabilities = self._forecast(ids)
        if self._projection is None:
            size = (probabilities.shape[1], WIDTH)
            self._projection = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
        return probabilities @ self._projection


def line_features(prompts: Iterable[PromptText], encode: Encode | None, vectors: TokenVectors) -> LineFeatures:
    """Return the features of prompts. Without `encode` (a model without a tokenizer) texts have no vector."""
    digests, sums = [], []
    for prompt in prompts:
        digests.append(prefix_digests(prompt.text))
        sums.append(vectors.sum(_tail_ids(prompt, encode)))
    return LineFeatures(
        np.array(digests, dtype=np.uint64).reshape(-1, len(PREFIX_CHARACTERS)),
        np.array(sums, dtype=np.float32).reshape(-1, WIDTH),
    )


def prompt_text(body: bytes) -> PromptText:
    """Return the prompt in a body of either endpoint; empty for a body that will be refused."""
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return PromptText("")
    prompt = content.get("prompt") if isinstance(content, dict) else None
    if prompt is None and isinstance(content, dict):
        return PromptText("\n".join(_message_texts(content.get("messages"))))
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = prompt[0]  # several prompts of one request run one after another: the first stands for all
    if isinstance(prompt, list) and all(isinstance(token, int) and 0 <= token < 2**63 for token in prompt):
        return PromptText(" ".join(map(str, prompt)), prompt)
    return PromptText(prompt if isinstance(prompt, str) else "")


def _message_texts(messages: Any) -> Iterable[str]:
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [{"text": content}]
        for part in parts:
            text = part.get("text") if isinstance(part, dict) else None
            if isinstance(text, str):
                yield text


def _tail_ids(prompt: PromptText, encode: Encode | None) -> list[int]:
    if prompt.ids is not None:
        return prompt.ids[-TAIL_TOKENS:]
    return encode(prompt.text[-TAIL_CHARACTERS:]) if encode and prompt.text else []
