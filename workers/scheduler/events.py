"""What the scheduler's core hears and what it asks for. Time comes in with the events, as monotonic nanoseconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...ipc.messages import FromClient, PredictRows, PredictStep, RowPredictions, Stepped, ToClient
from ...ipc.messages.to_compute import ComputeFromScheduler

Facts = dict[str, int | float | str]


@dataclass(frozen=True, slots=True)
class ClientMessage:
    """A client said something."""

    identity: bytes
    message: FromClient
    now_ns: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A client sent bytes that are no message; `request_id` is empty when not even that could be read."""

    identity: bytes
    request_id: str
    what: str


@dataclass(frozen=True, slots=True)
class ClientLost:
    """A send to this client failed: nobody waits for its requests any more."""

    identity: bytes
    now_ns: int


@dataclass(frozen=True, slots=True)
class ComputeJoined:
    """Compute (re)started and holds no unit of ours."""

    now_ns: int
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ComputeLost:
    """Compute died: every unit is gone, steps in flight will not be answered."""

    now_ns: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """Compute answered."""

    stepped: Stepped
    now_ns: int


@dataclass(frozen=True, slots=True)
class RowPredictionsReady:
    """The predictor answered a question about single rows."""

    row_predictions: RowPredictions


@dataclass(frozen=True, slots=True)
class Draining:
    """The engine stops: open requests end with a typed error, new ones are refused."""

    now_ns: int


@dataclass(frozen=True, slots=True)
class Tick:
    """All messages at hand were heard: end what is overdue, then send steps."""

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
    | Tick
)


@dataclass(frozen=True, slots=True)
class Send:
    """Tell a client."""

    identity: bytes
    message: ToClient


@dataclass(frozen=True, slots=True)
class ToCompute:
    """Tell compute; order matters."""

    message: ComputeFromScheduler


@dataclass(frozen=True, slots=True)
class ToPredictor:
    """Advice ahead of a step, or a question; may be lost."""

    message: PredictStep | PredictRows


SchedulerAction = Send | ToCompute | ToPredictor
