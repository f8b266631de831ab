"""Plain numbers: what the scheduler knows of the model, of compute and of its limits, and what it publishes."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ...ipc.messages import NEUTRAL, GenerationSettings, Stepped, StepSize, Welcome
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
    prefill_chunk: int = 0
    """Most positions of a prompt that one step prefills while the model can do that; 0: all."""
    prefix_cache: bool = False
    """Prefixes that rows share are computed once, and kept as long as the KV budget has room."""
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
    extending: bool = True
    """A prompt can be prefilled in chunks."""
    copying: bool = True
    """The beginning of a row can be copied to others."""
    resident: bool = False
    """Every expert has a slot."""

    @property
    def can_copy(self) -> bool:
        """Tell whether a row may begin with a copy of another's beginning, and compute the rest at once."""
        return self.copying and self.extending and self.moving

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
        extending=bool(int(facts.get("extending", 1))),
        copying=bool(int(facts.get("copying", 1))),
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


class DecodeCounts(msgspec.Struct):
    """Sums over the decode steps of compute; a prefill is none of them."""

    decode_steps: int = 0
    decode_tokens: int = 0
    decode_ns: int = 0
    """Time of compute at work on them, stalls included."""
    decode_stall_ns: int = 0
    decode_experts: int = 0
    """Distinct experts of every layer."""
    decode_misses: int = 0

    def add(self, step: Stepped) -> None:
        """Add a decode step that is done."""
        self.decode_steps += 1
        self.decode_tokens += len(step.tokens)
        self.decode_ns += step.busy_ns
        self.decode_stall_ns += step.stall_ns
        self.decode_experts += step.experts
        self.decode_misses += step.misses


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """Levels and counters, as published; counters grow from the start of this scheduler."""

    queue: int
    running: int
    units: int
    units_wanted: int
    prediction_wanted: int
    """1; 0 if predictions and hints were measured to cost more than they save."""
    grouping_wanted: int
    trials: int
    """Trials of other modes of decoding."""
    regroupings: int
    rows_moved: int
    unpredicted: int
    """Rounds without regrouping because the predictor did not answer in time."""
    invalid_answers: int
    """Answers of the predictor that fitted no open question."""
    steps_in_flight: int
    kv_reserved_bytes: int
    kv_prefix_bytes: int
    """KV memory of kept prefixes, in what rows do not reserve."""
    prefix_queries: int
    """Prefills of rows for which a kept prefix was looked for."""
    prefix_hits: int
    prefix_tokens: int
    """Rows that began with one, and their tokens that were not computed."""
    accepting: int
    """1; 0 once the engine drains or stops: new requests are refused."""
    open: int
    """Requests that were accepted and have not ended."""
    accepted: int
    oldest_waiting_ns: int
    """Monotonic time at which the request that waits longest for its start was accepted; 0: none waits."""
    prompt_tokens: int
    """Tokens of the prompts of requests that have begun."""
    done: int
    refused: int
    abandoned: int
    tokens: int
    steps: int
    stale_steps: int
    recomputed: int
    decode_steps: int
    decode_tokens: int
    decode_ns: int
    decode_stall_ns: int
    decode_experts: int
    decode_misses: int
    """Sums over decode steps, as in `DecodeCounts`."""
