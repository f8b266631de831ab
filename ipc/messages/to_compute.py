"""Messages to compute: steps from the scheduler, residency from the loader."""

from __future__ import annotations

import msgspec

from .base import NO_CAUSE, Cause, Message, RequestRow


class RunStep(Message, frozen=True, kw_only=True):
    """One step of one unit. Steps are numbered by the scheduler and run in order.

    In this order: rows in `drop` leave the unit; units in `join` are appended to it; then one forward pass runs. It is
    a prefill of the rows in `admit`, with which a new unit starts, or it runs the last token of every row.
    The answer is `Stepped`.
    """

    number: int
    unit: int
    drop: list[int] = []
    join: list[int] = []
    admit: list[RequestRow] = []
    predict: bool = True
    """False: no predictions and no hints are made for this step."""
    continues: bool = False
    """The step runs the next chunk of a prefill that an earlier step began. A row's token is chosen in its last one."""
    batch_invariant: bool = False
    """The unit's rows never share a kernel call, so that none depends on its neighbours (I1d)."""


class DropUnit(Message, frozen=True):
    """Drop a unit and its cache without running it (all its rows were cancelled)."""

    unit: int


class Split(Message, frozen=True):
    """Move `rows` of `unit` to the new unit `into` before the next step."""

    unit: int
    rows: list[int]
    into: int


class KeepPrefix(Message, frozen=True, kw_only=True):
    """Copy positions of `row` of `unit`, from `begin` on, into new blocks of `size` positions with these numbers.

    Rows that begin with the same ids start from them (`RequestRow.blocks`).
    """

    unit: int
    row: int
    begin: int
    size: int
    blocks: list[int]


class DropPrefix(Message, frozen=True):
    """Drop these blocks: rows need their memory."""

    blocks: list[int]


ComputeFromScheduler = RunStep | DropUnit | Split | KeepPrefix | DropPrefix
COMPUTE_FROM_SCHEDULER: msgspec.msgpack.Decoder[ComputeFromScheduler] = msgspec.msgpack.Decoder(ComputeFromScheduler)


class Filled(Message, frozen=True):
    """Slot `slot` now holds this expert and belongs to compute (R1). `cause`: the reason for the fill."""

    slot: int
    layer: int
    expert: int
    cause: Cause = NO_CAUSE


class Copy(Message, frozen=True):
    """Slots in device memory: copy an expert from `place` of the host store into `slot`, which holds it from now on.

    Compute enqueues the copy ahead of copies that are not `urgent`, and sends `CopiesDone` at its end.
    """

    number: int
    slot: int
    layer: int
    expert: int
    place: int
    urgent: bool = False
    cause: Cause = NO_CAUSE


class Recall(Message, frozen=True):
    """Give these slots back at the end of `layer` of step `step`, or now (`step` = -1) (R3).

    `cause`: the reason for which the loader needs the slots.
    """

    slots: list[int]
    step: int = -1
    layer: int = -1
    cause: Cause = NO_CAUSE


HeldFromLoader = Filled | Recall
"""Messages about filled slots."""
ComputeFromLoader = HeldFromLoader | Copy
COMPUTE_FROM_LOADER: msgspec.msgpack.Decoder[ComputeFromLoader] = msgspec.msgpack.Decoder(ComputeFromLoader)
