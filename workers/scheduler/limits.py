"""Plain numbers that the scheduler knows of the model, of compute and of its own limits."""

from __future__ import annotations

import msgspec

from ...ipc.messages import NEUTRAL, GenerationSettings, StepSize, Welcome
from .events import Facts

REMEMBERED_REQUESTS = 20_000
REMEMBERED_TOKENS = 4_000_000


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of the model, from the survey of the checkpoint."""

    model: str
    """The model's folder; the client looks for `tokenizer.json` in it."""
    vocabulary: int
    context: int
    eos_ids: list[int]
    first_token: int | None = None
    """First output token of requests that name none; None: the model chooses it."""
    settings: GenerationSettings = NEUTRAL
    """The model's own generation settings, which hold for every request."""
    layers: int
    experts: int
    """Experts of one layer; `layers` counts the layers with experts."""
    decoder_start: int | None = None
    """Token with which a decoder behind an encoder begins; None: the model has no encoder."""
    kv_bytes_per_position: int
    """Upper bound, in use until compute has probed the real value."""


class SchedulerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and modes from the configuration."""

    batch_size: int
    """Sequences that run at the same time, in one unit or in several."""
    prefill_tokens: int
    queue_limit: int
    kv_bytes: int
    units: str = "auto"
    prediction: str = "on"
    grouping: str = "off"
    batch_invariant: bool = False
    """For requests that do not say so themselves."""
    lockstep: bool = True
    """Compute can run batch-invariant requests; on a GPU it cannot."""
    gather_ns: int = 4_000_000
    """A prefill waits this long for more requests of the same burst: a pass over the model's weights costs far more."""
    gather_limit_ns: int = 40_000_000


def shrink_limits(limits: SchedulerLimits, most: StepSize, was_prefill: bool) -> SchedulerLimits:
    """Return `limits` for the steps after one that did not fit a device's memory: none is larger than `most`."""
    if was_prefill:
        return msgspec.structs.replace(limits, prefill_tokens=min(limits.prefill_tokens, most.positions))
    return msgspec.structs.replace(limits, batch_size=min(limits.batch_size, most.rows))


class ComputeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of compute's `Ready`: the cost of KV memory, and which operations on units are exact for this model."""

    kv_bytes_per_position: int
    """Bytes of one padded position of one row, over all layers."""
    kv_bytes_per_row: int = 0
    """Bytes of a row that do not depend on its length (recurrent states)."""
    padding: bool = True
    """Rows of different lengths may share a unit."""
    moving: bool = True
    """Rows can move between units and leave them for good; if not, rows that left still take memory."""
    resident: bool = False
    """Every expert has a slot."""

    @property
    def joining(self) -> bool:
        """Tell whether units may be joined and split."""
        return self.padding and self.moving


def compute_info(facts: Facts, model: ModelInfo) -> ComputeInfo:
    """Read compute's facts; a missing one is taken from the survey."""
    return ComputeInfo(
        kv_bytes_per_position=int(facts.get("kv_bytes_per_position", model.kv_bytes_per_position)),
        kv_bytes_per_row=int(facts.get("kv_bytes_per_row", 0)),
        padding=bool(int(facts.get("padding", 1))),
        moving=bool(int(facts.get("moving", 1))),
        resident=bool(int(facts.get("resident", 0))),
    )


def make_welcome(model: ModelInfo, limits: SchedulerLimits) -> Welcome:
    """Return the answer to a client's `Hello`."""
    return Welcome(
        model=model.model,
        vocabulary=model.vocabulary,
        context=model.context,
        eos_ids=model.eos_ids,
        queue_limit=limits.queue_limit,
        batch_size=limits.batch_size,
    )
