"""What happens inside the loader besides messages: transfers that start and end, a compute process that comes."""

from __future__ import annotations

import msgspec

from ...ipc.messages import (
    NO_CAUSE,
    Cause,
    Filled,
    Hint,
    Miss,
    Recall,
    Released,
    ResidentTable,
    StepPrediction,
    StepRouting,
)


class FillDone(msgspec.Struct, frozen=True, tag=True):
    """The transfer into `slot` has ended; not `ok`: the slot's contents are worthless."""

    slot: int
    ok: bool = True


class ComputeJoined(msgspec.Struct, frozen=True, tag=True):
    """A compute process of a new epoch is there; whatever the one before it held or was asked for is void."""


class StartFill(msgspec.Struct, frozen=True):
    """Bring this expert into `slot`. `urgent`: compute waits for it, so it goes before all that is not."""

    slot: int
    layer: int
    expert: int
    urgent: bool
    cause: Cause = NO_CAUSE


class PromoteFill(msgspec.Struct, frozen=True):
    """The transfer into `slot` has become urgent."""

    slot: int


LedgerEvent = Miss | Hint | Released | StepRouting | ResidentTable | StepPrediction | FillDone | ComputeJoined
LedgerAction = Filled | Recall | StartFill | PromoteFill
