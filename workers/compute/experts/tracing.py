"""Collects what a trace keeps of forwards: router weights, hints, hidden states of some tokens, times of layers.

It exists only if a trace is configured, so it costs nothing otherwise. It keeps one step at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from ....configs.schema import Config
from ....errors import UsageError
from ....ipc.messages import Hint, RunStep, Stepped, StepRouting
from ...checkpoint.survey import Survey
from ...model.step_input import StepTokens
from ...traces.records import TracedStep, TraceHeader
from ...traces.routing import lay_out, seen_layers
from ...traces.stream import TraceFile


class StepTrace:
    """Trace of one start of compute, with the hidden states of a `hidden_share` of the tokens."""

    def __init__(
        self,
        file: TraceFile,
        header: TraceHeader,
        hidden_share: float,
        clock_ns: Callable[[], int],
        stall_ns: Callable[[], int],
    ) -> None:
        """Write to `file`; `stall_ns` returns how long compute has waited for experts since its start."""
        self._file, self._header = file, header
        self._share, self._random = hidden_share, np.random.default_rng(header.epoch)
        self._clock_ns, self._stall_ns = clock_ns, stall_ns
        self._sampled = np.empty(0, dtype=np.int64)
        self._weights: dict[int, np.ndarray] = {}
        self._hidden: dict[int, np.ndarray] = {}
        self._hints: dict[int, bytes] = {}
        self._compute_ns = [0] * (header.layers + 1)
        self._marked_ns = self._started_ns = 0

    def begin(self, tokens: StepTokens) -> None:
        """Begin a forward over these tokens; drop the data of a forward that failed."""
        self._sampled = np.flatnonzero(self._random.random(len(tokens.token_ids)) < self._share)
        for collected in (self._weights, self._hidden, self._hints):
            collected.clear()
        self._compute_ns = [0] * (self._header.layers + 1)
        self._started_ns = self._clock_ns()
        self._marked_ns = self._now_ns()

    def layer(self, layer: int, hidden: torch.Tensor, weights: torch.Tensor) -> None:
        """Add a MoE layer's input [tokens, width] and router weights [tokens, top-k], once its router has run."""
        self._mark(layer)
        self._weights[layer] = _half(weights)
        if self._sampled.size:
            self._hidden[layer] = _half(hidden[torch.from_numpy(self._sampled)])

    def hint(self, hint: Hint) -> None:
        """Add a hint that was sent to the loader."""
        self._hints[hint.layer] = hint.scores

    def end(self) -> None:
        """End the forward, after its last layer."""
        self._mark(self._header.layers)

    def write(self, order: RunStep, result: Stepped, routing: StepRouting | None) -> None:
        """Write the step. A step that was recomputed in parts after an error (`routing` is None) is left out."""
        if routing is None:
            return
        record = TracedStep(
            step=order.number,
            unit=order.unit,
            phase="prefill" if order.admit or order.continues else "decode",
            token_ids=routing.token_ids,
            rows=routing.rows,
            positions=routing.positions,
            experts=routing.experts,
            weights=self._all_weights(routing),
            started_ns=self._started_ns,
            busy_ns=result.busy_ns,
            stall_ns=result.stall_ns,
            compute_ns=self._compute_ns,
            hits=routing.hits,
            misses=routing.misses,
            admitted=[row.number for row in order.admit],
            seeds=[row.sampling.seed for row in order.admit],
            hints=self._all_hints(),
            sampled=self._sampled.tolist(),
            hidden=_stacked(self._hidden),
            sources=routing.sources,
        )
        self._file.write(record)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _mark(self, layer: int) -> None:
        """Note the compute time since the last mark, as the time before this layer's choice."""
        before_ns, self._marked_ns = self._marked_ns, self._now_ns()
        self._compute_ns[layer] = self._marked_ns - before_ns

    def _now_ns(self) -> int:
        """Return the clock without the time that compute has waited."""
        return self._clock_ns() - self._stall_ns()

    def _all_weights(self, routing: StepRouting) -> bytes:
        if not self._header.encoder_layers:
            return _stacked(_zero_filled(self._weights))
        header = self._header
        seen = seen_layers(len(routing.token_ids), routing.sources, header.layers, header.encoder_layers)
        return lay_out(_zero_filled(self._weights), seen, 0).tobytes()

    def _all_hints(self) -> bytes:
        if not self._hints:
            return b""
        none = bytes(self._header.experts)
        return b"".join(self._hints.get(layer, none) for layer in range(self._header.layers))


def open_trace(config: Config, epoch: int, survey: Survey, slots: int, stall_ns: Callable[[], int]) -> StepTrace | None:
    """Open the trace that `config` asks for; None if it asks for none.

    Raises UsageError if it asks for hidden states of a model with an encoder.
    """
    if not config.trace:
        return None
    if survey.encoder_layers and config.trace_hidden:
        what = "hidden states are kept of tokens that see every layer, and with an encoder none does"
        raise UsageError(what, "trace_hidden", "Trace without them (hints = router needs no training)")
    header = TraceHeader.of("compute", epoch, survey, slots)
    return StepTrace(TraceFile(config.trace, header), header, config.trace_hidden, time.monotonic_ns, stall_ns)


def _half(values: torch.Tensor) -> np.ndarray:
    return values.to(torch.float16).cpu().numpy().astype("<f2", copy=False)


def _zero_filled(by_layer: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Pad the weights [tokens, top-k] of layers with a smaller top-k: their repeated first expert has weight 0."""
    widest = max((weights.shape[1] for weights in by_layer.values()), default=0)
    return {layer: np.pad(weights, ((0, 0), (0, widest - weights.shape[1]))) for layer, weights in by_layer.items()}


def _stacked(by_layer: dict[int, np.ndarray]) -> bytes:
    """Return [tokens, layers, …] from [tokens, …] of each layer."""
    return np.stack([by_layer[layer] for layer in sorted(by_layer)], axis=1).tobytes() if by_layer else b""
