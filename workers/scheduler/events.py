"""Events into the scheduler's core and actions out of it. Events carry the time, as monotonic nanoseconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...ipc.messages import FromClient, PredictRows, PredictStep, RowPredictions, Stepped, ToClient
from ...ipc.messages.to_compute import ComputeFromScheduler

Facts = dict[str, int | float | str]


@dataclass(frozen=True, slots=True)
class ClientMessage:
    """A message of a client."""

    identity: bytes
    message: FromClient
    now_ns: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Bytes of a client that are no valid message. `request_id` is empty if it could not be read either."""

    identity: bytes
    request_id: str
    what: str


@dataclass(frozen=True, slots=True)
class ClientLost:
    """A failed send to a client: nobody waits for its requests any more."""

    identity: bytes
    now_ns: int


@dataclass(frozen=True, slots=True)
class ComputeJoined:
    """A start or restart of compute: it holds no unit yet. `facts` are those of its `Ready`."""

    now_ns: int
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ComputeLost:
    """A death of compute: every unit is gone, steps in flight will not be answered."""

    now_ns: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """Compute's answer to a step."""

    stepped: Stepped
    now_ns: int


@dataclass(frozen=True, slots=True)
class RowPredictionsReady:
    """The predictor's answer to `PredictRows`."""

    row_predictions: RowPredictions


@dataclass(frozen=True, slots=True)
class Draining:
    """The stop of the engine: open requests end with a typed error, new ones are refused."""

    now_ns: int


@dataclass(frozen=True, slots=True)
class IntakeClosed:
    """The drain of the engine: accepted requests go on, new ones are refused."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The end of a batch of messages: overdue requests end, then steps are sent."""

    now_ns: int


SchedulerEvent = (
    ClientMessage
    | Unreadable
    | ClientLost
    | ComputeJoined
    | ComputeLost
    | StepDone
    | RowPredictionsReady
    | Draining
    | IntakeClosed
    | Tick
)


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a client."""

    identity: bytes
    message: ToClient


@dataclass(frozen=True, slots=True)
class ToCompute:
    """Send a message to compute; the order matters."""

    message: ComputeFromScheduler


@dataclass(frozen=True, slots=True)
class ToPredictor:
    """Send the predictor a step's tokens or a question about rows; the message may be lost."""

    message: PredictStep | PredictRows


SchedulerAction = Send | ToCompute | ToPredictor
