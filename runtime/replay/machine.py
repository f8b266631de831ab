"""The machine that a timed replay imagines."""

from __future__ import annotations

import math

import msgspec

from ...errors import UsageError
from ...workers.loader.transfer.files import CHUNK_BYTES


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
