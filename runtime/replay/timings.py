"""How long compute works, without waiting: by a formula, or as it was recorded."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ...workers.traces.step_log import StepLog
from .machine import Machine


class Timings(Protocol):
    """Times of compute in nanoseconds. In each layer the experts are chosen, they run, and then comes the rest."""

    def pause_ns(self, step: int) -> int:
        """Between the step before and this one, when compute is idle."""
        ...

    def before_ns(self, step: int) -> int:
        """From the step's begin to the choice of the first MoE layer."""
        ...

    def expert_ns(self, step: int, layer: int, tokens: int) -> int:
        """Of one expert with so many tokens."""
        ...

    def after_ns(self, step: int, layer: int) -> int:
        """From the layer's last expert to the choice of the next MoE layer, or to the end of the step."""
        ...


class MachineTimings:
    """The same for every step."""

    def __init__(self, machine: Machine, layers: int) -> None:
        self._machine, self._last = machine, layers - 1

    def pause_ns(self, step: int) -> int:
        return 0

    def before_ns(self, step: int) -> int:
        return self._machine.step_ns + self._machine.layer_ns

    def expert_ns(self, step: int, layer: int, tokens: int) -> int:
        return self._machine.expert_ns + tokens * self._machine.token_ns

    def after_ns(self, step: int, layer: int) -> int:
        return self._machine.layer_ns if layer < self._last else 0


class RecordedTimings:
    """Every layer of every step as long as it took when it was recorded.

    What one expert took was not recorded: `expert_share` of a layer's time, in equal parts, is taken to be theirs.
    """

    def __init__(self, log: StepLog, places: np.ndarray, unions: np.ndarray, expert_share: float = 0.7) -> None:
        """`places` [steps]: where the replay's steps are in the log; `unions` [steps, layers]: distinct experts."""
        compute_ns = log.compute_ns[places]
        experts_ns = expert_share * compute_ns[:, 1:]
        self._before_ns = compute_ns[:, 0]
        self._each_ns = (experts_ns / np.maximum(unions, 1)).astype(np.int64)
        self._after_ns = compute_ns[:, 1:] - self._each_ns * unions
        started, ended = log.started_ns[places], (log.started_ns + log.busy_ns)[places]
        self._pause_ns = np.maximum(np.append(0, started[1:] - ended[:-1]), 0)

    def pause_ns(self, step: int) -> int:
        return int(self._pause_ns[step])

    def before_ns(self, step: int) -> int:
        return int(self._before_ns[step])

    def expert_ns(self, step: int, layer: int, tokens: int) -> int:
        return int(self._each_ns[step, layer])

    def after_ns(self, step: int, layer: int) -> int:
        return int(self._after_ns[step, layer])
