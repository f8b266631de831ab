"""What the scheduler must know of the model, of compute and of its own limits: plain numbers."""

from __future__ import annotations

import msgspec

from ...ipc.messages import NEUTRAL, GenerationSettings, StepSize, Welcome
from .events import Facts

REMEMBERED_REQUESTS = 20_000
REMEMBERED_TOKENS = 4_000_000


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """From the survey of the checkpoint."""

    model: str
    """Folder; the client looks for `tokenizer.json` in it."""
    vocabulary: int
    context: int
    eos_ids: list[int]
    first_token: int | None = None
    """Of outputs whose request names none."""
    settings: GenerationSettings = NEUTRAL
    """The model's own, for every request."""
    layers: int
    experts: int
    """Layers with experts, and experts of one."""
    decoder_start: int | None = None
    """What outputs begin with inside of a model with an encoder; None: it has none."""
    kv_bytes_per_position: int
    """Upper bound, until compute has probed the real one."""


class SchedulerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """From the configuration."""

    batch_size: int
    """Sequences that run at the same time, in one unit or spread over several."""
    prefill_tokens: int
    queue_limit: int
    kv_bytes: int
    units: str = "auto"
    prediction: str = "on"
    grouping: str = "off"
    gather_ns: int = 4_000_000
    """A prefill waits this long for more requests of the same burst: a pass over the model's weights costs far more."""
    gather_limit_ns: int = 40_000_000


def shrunk(limits: SchedulerLimits, most: StepSize, was_prefill: bool) -> SchedulerLimits:
    """After a step that did not fit the memory of a device: those to come are no larger than `most`."""
    if was_prefill:
        return msgspec.structs.replace(limits, prefill_tokens=min(limits.prefill_tokens, most.positions))
    return msgspec.structs.replace(limits, batch_size=min(limits.batch_size, most.rows))


class ComputeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """From compute's `Ready`: the cost of KV memory, and which operations on units are exact for this model."""

    kv_bytes_per_position: int
    """Of one padded position of one row, all layers."""
    kv_bytes_per_row: int = 0
    """What a row costs whatever its length (recurrent states)."""
    padding: bool = True
    """Rows of different lengths may share a unit."""
    moving: bool = True
    """Rows can be moved between units and leave them for good; if not, rows that left still take memory."""
    resident: bool = False
    """Every expert has a slot."""

    @property
    def joining(self) -> bool:
        """Whether units may be joined and split."""
        return self.padding and self.moving


def compute_info(facts: Facts, model: ModelInfo) -> ComputeInfo:
    """Read compute's facts; what it does not say is taken from the survey."""
    return ComputeInfo(
        kv_bytes_per_position=int(facts.get("kv_bytes_per_position", model.kv_bytes_per_position)),
        kv_bytes_per_row=int(facts.get("kv_bytes_per_row", 0)),
        padding=bool(int(facts.get("padding", 1))),
        moving=bool(int(facts.get("moving", 1))),
        resident=bool(int(facts.get("resident", 0))),
    )


def welcome(model: ModelInfo, limits: SchedulerLimits) -> Welcome:
    return Welcome(
        model=model.model,
        vocabulary=model.vocabulary,
        context=model.context,
        eos_ids=model.eos_ids,
        queue_limit=limits.queue_limit,
        batch_size=limits.batch_size,
    )
