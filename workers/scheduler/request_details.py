"""Details of a request besides its tokens, as compute has told them, kept until the request ends."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np

from ...ipc.messages import NO_DETAILS, Details, RoutedExperts, RowDetails, TokenLogprob

ENTRY_TOKENS = 4
"""Tokens of memory that one remembered log-probability counts for."""


@dataclass(slots=True, eq=False)
class RequestDetails:
    """Details of one request. A death of compute loses none that was told; routes begin anew with the next prefill."""

    asked: Details = NO_DETAILS
    prompt: int = 0
    """Tokens of the prompt."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Logprobs of the last output tokens: an earlier scheduler has delivered those of the others."""
    _prompt_logprobs: list[TokenLogprob | None] = field(default_factory=lambda: [None])
    _routes: bytearray = field(default_factory=bytearray)
    _layers: int = 0
    _top_k: int = 0
    _ran: bool = False
    """Something was told: a prompt of one token has no logprobs to wait for."""

    @property
    def missing(self) -> bool:
        """Return whether the prompt must be computed, even if the whole output is there."""
        if self.asked.routed_experts and not self._routes:
            return True
        return self.asked.prompt_logprobs is not None and self.prompt_logprobs is None

    @property
    def prompt_logprobs(self) -> list[TokenLogprob | None] | None:
        """Return the entries of the prompt's tokens; None if they were not asked for, or are not all there."""
        whole = self.asked.prompt_logprobs is not None and len(self._prompt_logprobs) == self.prompt
        return self._prompt_logprobs if whole and self._ran else None

    @property
    def left(self) -> Details:
        """Return what compute is to tell from now on."""
        known = self.prompt_logprobs is not None
        return msgspec.structs.replace(self.asked, prompt_logprobs=None) if known else self.asked

    def add(self, found: RowDetails, layers: int) -> None:
        """Add what a step found, its logprob left out; `layers`: those with experts."""
        self._ran = True
        if found.prompt_logprobs:
            self._prompt_logprobs[found.prompt_start :] = found.prompt_logprobs
        if found.routes:
            self._layers, self._top_k = layers, found.top_k
            del self._routes[found.routes_start * self._position_bytes :]
            self._routes += found.routes

    def routed_experts(self, positions: int, experts: int) -> RoutedExperts | None:
        """Return the experts of the first `positions`, as far as they are known; None if there are none.

        `experts`: how many a layer has, which decides the type of the numbers.
        """
        if not self._routes:
            return None
        routes = np.frombuffer(bytes(self._routes), dtype="<u2").reshape(-1, self._layers, self._top_k)[:positions]
        dtype = "uint8" if experts <= 256 else "uint16"
        shape = (len(routes), self._layers, self._top_k)
        return RoutedExperts(shape=shape, dtype=dtype, data=routes.astype(f"<{np.dtype(dtype).str[1:]}").tobytes())

    @property
    def _position_bytes(self) -> int:
        return 2 * self._layers * self._top_k


def remembered_tokens(logprobs: list[TokenLogprob], prompt: list[TokenLogprob | None] | None, routes: int) -> int:
    """Return the memory of an ended request's details, in tokens; `routes` are bytes."""
    entries = sum(1 + len(entry.top) for entry in [*logprobs, *(prompt or [])] if entry is not None)
    return ENTRY_TOKENS * entries + routes // 8
