"""Watches forwards for a trace: router weights, hints, hidden states of some tokens, and what each layer took.

Made only when a trace is asked for, so nothing of it costs anything otherwise. It keeps one step at most.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ....ipc.messages import Hint, RunStep, Stepped, StepRouting
from ...model.step_input import StepTokens
from ...traces.records import TracedStep, TraceHeader
from ...traces.routing import lay_out, seen_layers
from ...traces.stream import TraceFile


class StepTrace:
    """The trace of one start of compute; `hidden_share` of the tokens keep their hidden states."""

    def __init__(
        self,
        file: TraceFile,
        header: TraceHeader,
        hidden_share: float,
        clock_ns: Callable[[], int],
        stall_ns: Callable[[], int],
    ) -> None:
        """`stall_ns` tells how long compute has waited for experts since its start."""
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
        """A forward over these tokens starts; what was gathered of one that failed is dropped."""
        self._sampled = np.flatnonzero(self._random.random(len(tokens.token_ids)) < self._share)
        for gathered in (self._weights, self._hidden, self._hints):
            gathered.clear()
        self._compute_ns = [0] * (self._header.layers + 1)
        self._started_ns = self._clock_ns()
        self._marked_ns = self._now_ns()

    def layer(self, layer: int, hidden: torch.Tensor, weights: torch.Tensor) -> None:
        """A MoE layer has chosen: its input [tokens, width] and the weights of the choice [tokens, top_k]."""
        self._mark(layer)
        self._weights[layer] = _half(weights)
        if self._sampled.size:
            self._hidden[layer] = _half(hidden[torch.from_numpy(self._sampled)])

    def hint(self, hint: Hint) -> None:
        """Compute told the loader what a layer will want."""
        self._hints[hint.layer] = hint.scores

    def end(self) -> None:
        """The forward is over, and its tokens are chosen."""
        self._mark(self._header.layers)

    def write(self, order: RunStep, result: Stepped, used: StepRouting | None) -> None:
        """The step is over. Rows that were rescued from a broken one (`used` is None) are not in the trace."""
        if used is None:
            return
        record = TracedStep(
            step=order.number,
            unit=order.unit,
            phase="prefill" if order.admit else "decode",
            token_ids=used.token_ids,
            rows=used.rows,
            positions=used.positions,
            experts=used.experts,
            weights=self._all_weights(used),
            started_ns=self._started_ns,
            busy_ns=result.busy_ns,
            stall_ns=result.stall_ns,
            compute_ns=self._compute_ns,
            hits=used.hits,
            misses=used.misses,
            admitted=[row.number for row in order.admit],
            seeds=[row.sampling.seed for row in order.admit],
            hints=self._all_hints(),
            sampled=self._sampled.tolist(),
            hidden=_stacked(self._hidden),
            sources=used.sources,
        )
        self._file.write(record)

    def close(self) -> None:
        self._file.close()

    def _mark(self, layer: int) -> None:
        """What came before this layer's choice has taken so long."""
        before_ns, self._marked_ns = self._marked_ns, self._now_ns()
        self._compute_ns[layer] = self._marked_ns - before_ns

    def _now_ns(self) -> int:
        """The clock, standing still while compute waits."""
        return self._clock_ns() - self._stall_ns()

    def _all_weights(self, used: StepRouting) -> bytes:
        if not self._header.encoder_layers:
            return _stacked(_zero_filled(self._weights))
        header = self._header
        seen = seen_layers(len(used.token_ids), used.sources, header.layers, header.encoder_layers)
        return lay_out(_zero_filled(self._weights), seen, 0).tobytes()

    def _all_hints(self) -> bytes:
        if not self._hints:
            return b""
        none = bytes(self._header.experts)
        return b"".join(self._hints.get(layer, none) for layer in range(self._header.layers))


def _half(values: torch.Tensor) -> np.ndarray:
    return values.to(torch.float16).cpu().numpy().astype("<f2", copy=False)


def _zero_filled(of_layers: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """[tokens, top-k] of each layer: one that takes fewer than others repeats its first expert, without weight."""
    widest = max((weights.shape[1] for weights in of_layers.values()), default=0)
    return {layer: np.pad(weights, ((0, 0), (0, widest - weights.shape[1]))) for layer, weights in of_layers.items()}


def _stacked(of_layers: dict[int, np.ndarray]) -> bytes:
    """[tokens, layers, …] from [tokens, …] of each layer."""
    return np.stack([of_layers[layer] for layer in sorted(of_layers)], axis=1).tobytes() if of_layers else b""
