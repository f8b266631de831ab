"""The machine that a timed replay imagines, and how long compute works on it: by a formula, or as it was recorded."""

from __future__ import annotations

import math
from typing import Protocol

import msgspec
import numpy as np

from ...errors import UsageError
from ...workers.loader.transfer.files import CHUNK_BYTES
from ...workers.traces.step_log import StepLog


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """How long things take. Nothing else is charged: the defaults are an infinitely fast machine."""

    expert_bytes: int = 1
    link_bytes_per_s: float = math.inf
    """Between the experts' home and the slots, shared by all transfers."""
    readers: int = 2
    """Chunks of experts under way at a time; a need waits for those that are (`Config.reads_in_flight`)."""
    chunk_bytes: int = CHUNK_BYTES
    step_ns: int = 0
    """Before the first MoE layer of a step and after the last one, all of it."""
    layer_ns: int = 0
    """Of a layer, before its experts are known."""
    expert_ns: int = 0
    """Of each distinct expert in use."""
    token_ns: int = 0
    """Of each (token, expert) product on top."""
    message_ns: int = 0
    """Of a message between two processes, from the one's decision to the other's attention."""
    decide_ns: int = 0
    """Of the ledger, for each thing that it hears."""

    def __post_init__(self) -> None:
        for name, least in (("expert_bytes", 1), ("chunk_bytes", 1), ("readers", 1), ("link_bytes_per_s", 1e-9)):
            if getattr(self, name) < least:
                raise UsageError(f"must be above 0, not {getattr(self, name)}", name, "Give a positive number")
        for name in ("step_ns", "layer_ns", "expert_ns", "token_ns", "message_ns", "decide_ns"):
            if getattr(self, name) < 0:
                raise UsageError(f"must not be negative, but is {getattr(self, name)}", name, "Give 0 or more")


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
