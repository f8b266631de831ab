"""Requests of a simulation: the sequences of a trace, with the experts that each of their tokens used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ....errors import UsageError
from ....ipc.messages import RoutedExperts
from ....workers.traces.trace import Trace

MIN_TOKENS = 2


@dataclass(frozen=True)
class SimulatedRequest:
    """One sequence of a trace as a request."""

    prompt_ids: list[int]
    output_ids: list[int]
    keys: np.ndarray
    """int64 [tokens, layers * top_k]: the experts of each token, as layer * experts + expert."""
    routes: RoutedExperts

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_ids)


class Workload:
    """Sequences of a trace as requests. Request `number` is sequence `number` modulo their count."""

    def __init__(self, trace: Trace, prompt_share: float, max_output: int) -> None:
        """Cut every sequence into prompt and output.

        Where the trace does not say which tokens were decoded, `prompt_share` of them are the prompt. Sequences of
        fewer than two tokens are left out. Raises UsageError if none is left.
        """
        self.layers, self.experts = trace.layers, trace.expert_count
        lengths = np.diff(trace.offsets)
        self._trace, self._share, self._max_output = trace, prompt_share, max_output
        self._sequences = np.flatnonzero(lengths >= MIN_TOKENS)
        self._requests: dict[int, SimulatedRequest] = {}
        if not len(self._sequences):
            raise UsageError("has no sequence of two tokens or more", "TRACE", "Record longer outputs")

    def __len__(self) -> int:
        return len(self._sequences)

    def shuffle(self, seed: int) -> None:
        """Mix the sequences: neighbours in a trace are often of one kind."""
        self._sequences = np.random.default_rng(seed).permutation(self._sequences)
        self._requests.clear()

    def request(self, number: int) -> SimulatedRequest:
        """Return a request; the same object each time."""
        sequence = int(self._sequences[number % len(self._sequences)])
        if sequence not in self._requests:
            self._requests[sequence] = self._make(sequence)
        return self._requests[sequence]

    def union(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Return int64 [n], ascending: the experts that are in any of the arrays."""
        used = np.zeros(self.layers * self.experts, dtype=bool)
        for part in parts:
            used[part] = True
        return np.flatnonzero(used)

    def _make(self, sequence: int) -> SimulatedRequest:
        trace = self._trace
        begin, end = (int(offset) for offset in trace.offsets[sequence : sequence + 2])
        prompt = self._prompt_tokens(begin, end)
        end = min(end, begin + prompt + self._max_output)
        routes = trace.routes[begin:end]
        keys = routes.astype(np.int64) + np.arange(self.layers)[None, :, None] * self.experts
        ids = trace.token_ids[begin:end].tolist()
        shape = (len(ids) - 1, self.layers, trace.top_k)
        told = RoutedExperts(shape=shape, dtype="uint16", data=routes[:-1].astype("<u2").tobytes())
        return SimulatedRequest(ids[:prompt], ids[prompt:], keys.reshape(len(ids), -1), told)

    def _prompt_tokens(self, begin: int, end: int) -> int:
        decoded = self._trace.decoded
        if decoded is not None and decoded[begin:end].any():
            prompt = int(np.argmax(decoded[begin:end])) + 1  # the first decoded token was fed back: it is output
        else:
            prompt = round((end - begin) * self._share)
        return min(max(prompt, 1), end - begin - 1)
