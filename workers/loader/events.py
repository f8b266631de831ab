"""Events and actions of the loader besides messages: transfers that start and end, a compute process that joins."""

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
    """The transfer into `slot` has ended. Without `ok` the contents of the slot are worthless."""

    slot: int
    ok: bool = True


class ComputeJoined(msgspec.Struct, frozen=True, tag=True):
    """A compute process of a new epoch has joined. Recalls and misses of the one before it are void."""


class StartFill(msgspec.Struct, frozen=True):
    """Load this expert into `slot`. `urgent`: compute waits for it, so it goes before all that is not urgent."""

    slot: int
    layer: int
    expert: int
    urgent: bool
    cause: Cause = NO_CAUSE


class PromoteFill(msgspec.Struct, frozen=True):
    """Make the transfer into `slot` urgent."""

    slot: int


LedgerEvent = Miss | Hint | Released | StepRouting | ResidentTable | StepPrediction | FillDone | ComputeJoined
LedgerAction = Filled | Recall | StartFill | PromoteFill
