"""Model of the machine in a timed replay: times of link, messages and compute, by formula or as recorded."""

from __future__ import annotations

import math
from typing import Protocol

import msgspec
import numpy as np

from ...errors import UsageError
from ...workers.loader.transfer.files import CHUNK_BYTES
from ...workers.traces.step_log import StepLog


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Times of a machine. Nothing else takes time; the defaults are an infinitely fast machine."""

    expert_bytes: int = 1
    link_bytes_per_s: float = math.inf
    """Rate from the experts' tier to the slots, shared by all transfers."""
    readers: int = 2
    """Chunks in flight at a time; a miss waits for these (`Config.reads_in_flight`)."""
    chunk_bytes: int = CHUNK_BYTES
    step_ns: int = 0
    """Time of a step before its first MoE layer and after its last one, together."""
    layer_ns: int = 0
    """Time of a layer before its experts are known."""
    expert_ns: int = 0
    """Time of each distinct expert."""
    token_ns: int = 0
    """Additional time of each (token, expert) pair."""
    message_ns: int = 0
    """Time of a message between two processes, from sending to handling."""
    decide_ns: int = 0
    """Time of the ledger for each event."""

    def __post_init__(self) -> None:
        for name, least in (("expert_bytes", 1), ("chunk_bytes", 1), ("readers", 1), ("link_bytes_per_s", 1e-9)):
            if getattr(self, name) < least:
                raise UsageError(f"must be above 0, not {getattr(self, name)}", name, "Give a positive number")
        for name in ("step_ns", "layer_ns", "expert_ns", "token_ns", "message_ns", "decide_ns"):
            if getattr(self, name) < 0:
                raise UsageError(f"must not be negative, but is {getattr(self, name)}", name, "Give 0 or more")


class Timings(Protocol):
    """Times of compute in nanoseconds. In each layer the router chooses experts, these run, then the rest runs."""

    def pause_ns(self, step: int) -> int:
        """Return the idle time of compute before this step."""
        ...

    def before_ns(self, step: int) -> int:
        """Return the time from the step's begin to the routing of its first MoE layer."""
        ...

    def expert_ns(self, step: int, layer: int, tokens: int) -> int:
        """Return the time of one expert with this number of tokens."""
        ...

    def after_ns(self, step: int, layer: int) -> int:
        """Return the time from the layer's last expert to the routing of the next MoE layer, or to the step's end."""
        ...


class MachineTimings:
    """Times by the formula of a `Machine`, the same for every step."""

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
    """Recorded times of every layer of every step.

    Times of single experts are not recorded: `expert_share` of a layer's time is divided equally among its experts.
    """

    def __init__(self, log: StepLog, log_indices: np.ndarray, unions: np.ndarray, expert_share: float = 0.7) -> None:
        """Read times from `log`.

        `log_indices`: int64 [steps], indices of the replay's steps in the log. `unions`: int64 [steps, layers], numbers
        of distinct experts.
        """
        compute_ns = log.compute_ns[log_indices]
        experts_ns = expert_share * compute_ns[:, 1:]
        self._before_ns = compute_ns[:, 0]
        self._expert_ns = (experts_ns / np.maximum(unions, 1)).astype(np.int64)
        self._after_ns = compute_ns[:, 1:] - self._expert_ns * unions
        started, ended = log.started_ns[log_indices], (log.started_ns + log.busy_ns)[log_indices]
        self._pause_ns = np.maximum(np.append(0, started[1:] - ended[:-1]), 0)

    def pause_ns(self, step: int) -> int:
        return int(self._pause_ns[step])

    def before_ns(self, step: int) -> int:
        return int(self._before_ns[step])

    def expert_ns(self, step: int, layer: int, tokens: int) -> int:
        return int(self._expert_ns[step, layer])

    def after_ns(self, step: int, layer: int) -> int:
        return int(self._after_ns[step, layer])
