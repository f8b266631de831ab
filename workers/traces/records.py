"""Records of a trace: MessagePack maps with the name of their class under `type` (docs/traces.md)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ..checkpoint.survey import Survey

VERSION = 1
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""Number from 0 that an int64 array can hold."""
Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
MAX_EXPERTS = 1 << 16
"""Most experts of a layer, since expert numbers are uint16."""


class TraceHeader(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """First record of every file. `model` is the name of the checkpoint's folder, not its path."""

    version: int = VERSION
    stage: str
    epoch: int
    model: str
    fingerprint: str
    layers: Size
    experts: Annotated[int, Meta(ge=1, le=MAX_EXPERTS)]
    top_k: Size
    expert_bytes: Count
    slots: Count = 0
    """Expert slots of the engine (files of compute)."""
    encoder_layers: int = 0
    """The first so many layers are an encoder's."""

    @classmethod
    def of(cls, stage: str, epoch: int, survey: Survey, slots: int = 0) -> TraceHeader:
        """Return the header of one start of a stage."""
        return cls(
            stage=stage,
            epoch=epoch,
            model=survey.folder.rstrip("/").rpartition("/")[2],
            fingerprint=survey.fingerprint,
            layers=survey.layers,
            experts=survey.experts,
            top_k=survey.top_k,
            expert_bytes=survey.expert_bytes,
            slots=slots,
            encoder_layers=survey.encoder_layers,
        )


class TracedStep(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """One step of one unit, without pads. Arrays are row-major, little endian; times are of the monotonic clock, in ns.

    Numbers of steps and rows are never used twice; their upper 32 bits are the epoch of the scheduler.
    """

    step: Count
    unit: Count
    phase: Literal["prefill", "decode"]
    token_ids: list[Count]
    rows: list[Count]
    positions: list[Count]
    experts: bytes
    """uint16 [tokens, layers, top_k]. A layer that takes fewer experts than others repeats its first, with weight 0."""
    weights: bytes
    """float16 [tokens, layers, top_k]."""
    started_ns: Count
    busy_ns: Count
    stall_ns: Count
    compute_ns: list[Count]
    """[layers + 1], without waiting for experts. The first entry is the time before the first MoE layer. The others are
    from the routing of a MoE layer to that of the next, the last one to the end of the step."""
    hits: Count
    misses: Count
    admitted: list[Count] = []
    """Rows that a prefill adds; `seeds` are those of their sampling. By its seed a sequence is recognized if another
    scheduler continues it."""
    seeds: list[Count] = []
    hints: bytes = b""
    """uint8 [layers, experts] as sent to the loader, 255 is certain; empty: no hints in this step."""
    sampled: list[Count] = []
    """Tokens of this step (indices into `token_ids`) whose hidden states were kept."""
    hidden: bytes = b""
    """float16 [sampled, layers, width]: input of each MoE layer."""
    sources: int = 0
    """The first so many tokens ran through an encoder. Where a token does not see a layer, `experts` is 65535 and
    `weights` is 0. Encoder and decoder count positions separately. A layer that did not run took no time."""


class TracedPlan(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Prediction of a step that the predictor sent: uint8 [layers, experts], 255 is certain."""

    step: Count
    sent_ns: Count
    scores: bytes


TraceRecord = TraceHeader | TracedStep | TracedPlan
