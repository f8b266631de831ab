"""All tokens of a trace folder as arrays, in the order in which they ran, recomputed ones included."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UsageError
from .folder import read_header, read_steps
from .records import TracedStep, TraceHeader
from .routing import UNROUTED, seen_layers
from .sequences import number_sequences
from .stream import REMEDY

DECODER_OFFSET = 1 << 32
"""Offset on the positions of a decoder, which count from 0: its tokens follow those of the prompt."""


class TokenArrays:
    """N tokens of a trace folder, and with `hidden` the hidden states of sampled ones.

    Raises UsageError as `read_trace` does.
    """

    def __init__(self, folder: Path, hidden: bool = False) -> None:
        self._folder, self.header = folder, read_header(folder)
        self._parts: dict[str, list[Any]] = defaultdict(list)
        self._seeds: dict[int, int] = {}
        self._tokens = 0
        for number, step in enumerate(read_steps(folder)):
            check_step(step, self.header, folder)
            self._add(number, step, hidden)
        if not self._tokens:
            raise UsageError("no step has ended yet", str(folder), "Wait, or trace a run with at least one prompt")

    def column(self, name: str) -> np.ndarray:
        """Return a column of the tokens.

        int64 [N]: `token_ids`, `rows`, `positions`, `steps`. bool [N]: `decoded`. uint16 [N, layers, top_k]: `experts`.
        float16 [N, layers, top_k]: `weights`.
        """
        return np.concatenate(self._parts[name])

    def sequences(self) -> np.ndarray:
        """Return int64 [N]: the sequence of each token, as `number_sequences` counts."""
        rows, positions, token_ids = map(self.column, ("rows", "positions", "token_ids"))
        return number_sequences(rows, positions, token_ids, self._seeds)

    def pop_hidden(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return int64 [M], indices of sampled tokens, and float16 [M, layers, width], inputs of layers; None: none.

        The states may be most of the memory, so this hands them over without a copy, once.
        """
        hidden = self._parts.pop("hidden", [])
        return (self.column("sampled"), np.concatenate(hidden).astype(np.float16, copy=False)) if hidden else None

    def _add(self, number: int, step: TracedStep, hidden: bool) -> None:
        parts, count = self._parts, len(step.token_ids)
        for name in ("token_ids", "rows", "positions"):
            parts[name].append(np.array(getattr(step, name), dtype=np.int64))
        if self.header.encoder_layers:
            parts["positions"][-1][step.sources :] += DECODER_OFFSET
        for name, dtype in (("experts", "<u2"), ("weights", "<f2")):
            values = np.frombuffer(getattr(step, name), dtype=dtype)
            parts[name].append(values.reshape(count, self.header.layers, self.header.top_k))
        parts["steps"].append(np.full(count, number))
        parts["decoded"].append(np.full(count, step.phase == "decode"))
        if hidden and step.sampled:
            parts["sampled"].append(self._tokens + np.array(step.sampled))
            states = np.frombuffer(step.hidden, dtype="<f2").reshape(len(step.sampled), self.header.layers, -1)
            if parts["hidden"] and states.shape[2] != parts["hidden"][0].shape[2]:
                what = f"step {step.step} has hidden states of another width than those before"
                raise UsageError(what, str(self._folder), REMEDY)
            parts["hidden"].append(states)
        self._seeds.update(zip(step.admitted, step.seeds, strict=True))
        self._tokens += count


def check_step(step: TracedStep, header: TraceHeader, folder: Path) -> None:
    """Check that the parts of a record fit together. Raises UsageError if they do not."""
    tokens = len(step.token_ids)
    choices = 2 * tokens * header.layers * header.top_k
    fits = (
        len(step.rows) == len(step.positions) == tokens > 0
        and len(step.experts) == len(step.weights) == choices
        and _routes_fit(step, header)
        and len(step.compute_ns) == header.layers + 1
        and len(step.admitted) == len(step.seeds)
        and len(step.hints) in (0, header.layers * header.experts)
        and all(0 <= token < tokens for token in step.sampled)
        and bool(step.hidden) == bool(step.sampled)
        and len(step.hidden) % (2 * header.layers * max(len(step.sampled), 1)) == 0
    )
    if not fits:
        raise UsageError(f"step {step.step} does not fit the header of the trace", str(folder), REMEDY)


def _routes_fit(step: TracedStep, header: TraceHeader) -> bool:
    seen = seen_layers(len(step.token_ids), step.sources, header.layers, header.encoder_layers)
    routes = np.frombuffer(step.experts, "<u2").reshape(*seen.shape, header.top_k)
    return bool((routes[seen] < header.experts).all() and (routes[~seen] == UNROUTED).all())
