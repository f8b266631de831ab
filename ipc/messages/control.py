"""Between the supervisor and its stages, and between the supervisor and whoever watches."""

from __future__ import annotations

import msgspec

from .base import ErrorFacts, Message


class Span(msgspec.Struct, frozen=True, array_like=True):
    """One thing a stage did, on the machine's monotonic clock."""

    name: str
    start_ns: int
    end_ns: int
    lane: int = 0
    detail: dict[str, int | str] = {}


class StageStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage publishes about itself (I7). Counters only grow within an epoch; rates are the reader's business."""

    stage: str
    pid: int
    epoch: int
    time_ns: int
    busy_ns: int = 0
    done: int = 0
    """Units of work finished: tokens (compute), requests (scheduler), forecasts (predictor), experts (loader)."""
    queue: int = 0
    waiting_on: str = ""
    counters: dict[str, int | float] = {}


class Ready(Message, frozen=True):
    """A stage has started; `facts` are numbers its peers or the user want to know."""

    stage: str
    epoch: int
    facts: dict[str, int | float | str] = {}


class Published(Message, frozen=True):
    """Statistics, and spans since the last time when a timeline is drawn."""

    stats: StageStats
    spans: list[Span] = []


class Failed(Message, frozen=True):
    """A stage gives up; the first one is the cause that the user sees."""

    stage: str
    error: ErrorFacts


class Progress(Message, frozen=True):
    """Something that takes longer than two seconds: `done` of `total`, in whatever `what` counts."""

    stage: str
    what: str
    done: int
    total: int


class AskSurvey(Message, frozen=True):
    """Survey this checkpoint (a folder or a hub id): what one stage is asked before anything else can be said."""

    model: str
    revision: str
    dtype: str
    generation_settings: str = "honour"


class Prepare(Message, frozen=True):
    """Import what the stage will need for the model in `folder`, then wait: what a spare process is told first."""

    folder: str


class Surveyed(Message, frozen=True):
    """The answer, encoded: a `workers.checkpoint.survey.Survey`. `Progress` comes before it, `Failed` instead."""

    survey: msgspec.Raw


FromSurveyor = Progress | Surveyed | Failed
FROM_SURVEYOR: msgspec.msgpack.Decoder[FromSurveyor] = msgspec.msgpack.Decoder(FromSurveyor)

FromStage = Ready | Published | Failed | Progress
FROM_STAGE: msgspec.msgpack.Decoder[FromStage] = msgspec.msgpack.Decoder(FromStage)


class Peer(Message, frozen=True):
    """A peer (re)started with this epoch: open a fresh link to it. `facts` are from its `Ready`."""

    stage: str
    epoch: int
    facts: dict[str, int | float | str] = {}


class PeerDied(Message, frozen=True):
    """A peer of this epoch has ended; it is started again, and `Peer` says when its successor is ready."""

    stage: str
    epoch: int


class Drain(Message, frozen=True):
    """Finish what is in flight, publish a last time and exit with 0."""


ToStage = Peer | PeerDied | Drain
TO_STAGE: msgspec.msgpack.Decoder[ToStage] = msgspec.msgpack.Decoder(ToStage)


class AskSnapshot(Message, frozen=True):
    """A watcher asks for the newest `Snapshot`."""


class KillStage(Message, frozen=True):
    """A watcher asks that a stage be killed with SIGKILL (`demo --kill`); it is restarted like any dead stage."""

    stage: str


FROM_WATCHER: msgspec.msgpack.Decoder[AskSnapshot | KillStage] = msgspec.msgpack.Decoder(AskSnapshot | KillStage)


class Snapshot(Message, frozen=True, kw_only=True):
    """All stages as last published, and the memory of every process."""

    time_ns: int
    stages: dict[str, StageStats]
    pss_bytes: dict[str, int]
    restarts: dict[str, int]
    facts: dict[str, dict[str, int | float | str]]
    down: dict[str, int] = {}
    """Stages that have died and whose successors are not ready: stage -> the epoch that died."""


SNAPSHOT: msgspec.msgpack.Decoder[Snapshot] = msgspec.msgpack.Decoder(Snapshot)
