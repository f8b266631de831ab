"""What the paper's transformer keeps of one sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from .module import T5Module, empty_cache, padded


@dataclass
class T5Row:
    """Numbers of its tokens, and keys and values of those that the decoder has read."""

    prompt: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    """Decoded tokens."""
    _encoded: Tensor | None = None
    """[1, prompt, width]"""
    _cache: EncoderDecoderCache | None = None
    _read: list[int] = field(default_factory=list)
    """Tokens whose keys and values are in the cache."""

    @property
    def end(self) -> int:
        return len(self.prompt) + len(self.known)

    @property
    def cached_tokens(self) -> int:
        return len(self._read) + (self._encoded.shape[1] if self._encoded is not None else 0)

    def extend(self, number: int, prompted: bool) -> None:
        """Another token has run, as part of the prompt or after it."""
        (self.prompt if prompted else self.known).append(number)
        if prompted:
            self.forget()

    def forget(self) -> None:
        """Drops what can be worked out again."""
        self._encoded = self._cache = None
        self._read = []

    @torch.no_grad()
    def forecast(self, module: T5Module, number: int) -> np.ndarray:
        """float32 [layers, experts] of the token that comes next."""
        window = module.shape.window
        if self._encoded is None:
            self._encoded = module.encode(padded([self.prompt[-window:]]))
        known = [*self.known, number]
        known = known[window_start(len(known), window) :]
        if self._cache is None or self._read != known[: len(self._read)] or len(self._read) == len(known):
            self._cache, self._read = empty_cache(), []
        fresh = torch.tensor(known[len(self._read) :])
        self._read = known
        return torch.sigmoid(module.proceed(self._encoded, fresh, self._cache)[-1]).numpy()


def window_start(tokens: int, window: int) -> int:
    """The first of `tokens` that is read: it moves by half a window, so that a cache serves for as long."""
    half = max(window // 2, 1)
    return -(-max(tokens - window, 0) // half) * half
