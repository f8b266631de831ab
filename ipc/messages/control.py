"""Messages between the supervisor and its stages, and between the supervisor and watchers."""

from __future__ import annotations

import msgspec

from .base import ErrorFacts, Message


class Span(msgspec.Struct, frozen=True, array_like=True):
    """One activity of a stage, in nanoseconds of the machine's monotonic clock."""

    name: str
    start_ns: int
    end_ns: int
    lane: int = 0
    detail: dict[str, int | str] = {}


class StageStats(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics that a stage publishes (I7). Counters only grow within an epoch; the reader computes rates."""

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
    """A stage has started; `facts` are for its peers and the user."""

    stage: str
    epoch: int
    facts: dict[str, int | float | str] = {}


class Published(Message, frozen=True):
    """Statistics and, when a timeline is drawn, the spans since the last `Published`."""

    stats: StageStats
    spans: list[Span] = []


class Failed(Message, frozen=True):
    """A stage gives up; the user sees the first `Failed` as the cause."""

    stage: str
    error: ErrorFacts


class Progress(Message, frozen=True):
    """Progress of work that takes longer than two seconds: `done` of `total`, in the unit that `what` implies."""

    stage: str
    what: str
    done: int
    total: int


class AskSurvey(Message, frozen=True):
    """Ask one stage to survey a checkpoint (a folder or a hub id), before any stage gets its spec."""

    model: str
    revision: str
    dtype: str
    generation_settings: str = "honour"
    kernels: str = "auto"
    """`Config.kernels`: how the kernel table of the survey is made."""
    on_device: bool = False
    """True: the model is computed on a device, and its survey has no kernel table."""
    measure: bool = False
    """True: kernels are timed again even if a table was kept."""


class Prepare(Message, frozen=True):
    """Ask a spare process to import what its stage needs for the model in `folder`, and then to wait."""

    folder: str


class Surveyed(Message, frozen=True):
    """Answer to `AskSurvey`: an encoded `workers.checkpoint.survey.Survey`. `Progress` comes before, `Failed`
    instead."""

    survey: msgspec.Raw


FromSurveyor = Progress | Surveyed | Failed
FROM_SURVEYOR: msgspec.msgpack.Decoder[FromSurveyor] = msgspec.msgpack.Decoder(FromSurveyor)

FromStage = Ready | Published | Failed | Progress
FROM_STAGE: msgspec.msgpack.Decoder[FromStage] = msgspec.msgpack.Decoder(FromStage)


class Peer(Message, frozen=True):
    """A peer has (re)started with this epoch: open a fresh link to it. `facts` are those of its `Ready`."""

    stage: str
    epoch: int
    facts: dict[str, int | float | str] = {}


class PeerDied(Message, frozen=True):
    """A peer of this epoch has ended; `Peer` follows when its successor is ready."""

    stage: str
    epoch: int


class Drain(Message, frozen=True):
    """Finish what is in flight, publish a last time and exit with 0."""


ToStage = Peer | PeerDied | Drain
TO_STAGE: msgspec.msgpack.Decoder[ToStage] = msgspec.msgpack.Decoder(ToStage)


class AskSnapshot(Message, frozen=True):
    """A watcher asks for the newest `Snapshot`."""


class KillStage(Message, frozen=True):
    """A watcher asks for SIGKILL on a stage (`demo --kill`); the stage is restarted like any dead stage."""

    stage: str


FROM_WATCHER: msgspec.msgpack.Decoder[AskSnapshot | KillStage] = msgspec.msgpack.Decoder(AskSnapshot | KillStage)


class Snapshot(Message, frozen=True, kw_only=True):
    """The last statistics of all stages, and the memory of every process."""

    time_ns: int
    stages: dict[str, StageStats]
    pss_bytes: dict[str, int]
    restarts: dict[str, int]
    facts: dict[str, dict[str, int | float | str]]
    down: dict[str, int] = {}
    """Stages that have died and whose successors are not ready: stage -> the epoch that died."""


SNAPSHOT: msgspec.msgpack.Decoder[Snapshot] = msgspec.msgpack.Decoder(Snapshot)
