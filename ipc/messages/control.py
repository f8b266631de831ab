"""Messages between the supervisor and its stages, and between the supervisor and watchers."""

from __future__ import annotations

from typing import Literal

import msgspec

from .activity import Activity, AskActivity, CacheHeat, OpenRequests, Watched
from .base import ErrorFacts, Message
from .history import AskHistory, History
from .operation import CloseIntake, DrainEngine, OrderEnded, ReloadEngine
from .spans import Span


class HistogramCounts(msgspec.Struct, frozen=True, array_like=True):
    """Durations counted by upper bounds."""

    bounds_s: list[float]
    """Upper bounds, rising, in seconds."""
    counts: list[int]
    """Durations up to each bound and above the one before it; one more, for those above the last bound."""
    sum_ns: int

    def __add__(self, other: HistogramCounts) -> HistogramCounts:
        counts = [count + more for count, more in zip(self.counts, other.counts, strict=True)]
        return HistogramCounts(self.bounds_s, counts, self.sum_ns + other.sum_ns)


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
    stalled_ns: int = 0
    """Time for which the stage waited for another one with work to do. No counter, as a wait is no progress."""
    counters: dict[str, int | float] = {}
    histograms: dict[str, HistogramCounts] = {}


class StageTotals(msgspec.Struct, frozen=True, array_like=True):
    """Counts of a stage over all its ended epochs."""

    busy_ns: int
    stalled_ns: int
    done: int
    counters: dict[str, int | float]
    """Levels are in here too, where their sum means nothing."""
    histograms: dict[str, HistogramCounts]


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
    experts_in: Literal["auto", "packed", "dequantised"] = "dequantised"
    """Form of quantised experts in slots (`PackingChoice`)."""


class Prepare(Message, frozen=True):
    """Ask a spare process to import what its stage needs for the model in `folder`, and then to wait."""

    folder: str


class Surveyed(Message, frozen=True):
    """Answer to `AskSurvey`: an encoded `workers.checkpoint.survey.Survey`. `Progress` comes before, `Failed`
    instead."""

    survey: msgspec.Raw


FromSurveyor = Progress | Surveyed | Failed
FROM_SURVEYOR: msgspec.msgpack.Decoder[FromSurveyor] = msgspec.msgpack.Decoder(FromSurveyor)

FromStage = Ready | Published | Failed | Progress | CacheHeat | OpenRequests
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


ToStage = Peer | PeerDied | Drain | Watched | CloseIntake
TO_STAGE: msgspec.msgpack.Decoder[ToStage] = msgspec.msgpack.Decoder(ToStage)


class AskSnapshot(Message, frozen=True):
    """A watcher asks for the newest `Snapshot`."""


class KillStage(Message, frozen=True):
    """A watcher asks for SIGKILL on a stage (`demo --kill`); the stage is restarted like any dead stage."""

    stage: str


FromWatcher = AskSnapshot | AskHistory | KillStage | AskActivity | DrainEngine | ReloadEngine
FROM_WATCHER: msgspec.msgpack.Decoder[FromWatcher] = msgspec.msgpack.Decoder(FromWatcher)


class Snapshot(Message, frozen=True, kw_only=True):
    """The last statistics of all stages, and the memory of every process."""

    time_ns: int
    stages: dict[str, StageStats]
    pss_bytes: dict[str, int]
    restarts: dict[str, int]
    facts: dict[str, dict[str, int | float | str]]
    down: dict[str, int] = {}
    """Stages that have died and whose successors are not ready: stage -> the epoch that died."""
    ended: dict[str, StageTotals] = {}
    """Stage -> what its earlier epochs counted; with `stages`, counts that never fall."""
    failures: dict[str, dict[str, int]] = {}
    """Stage -> how its processes ended ('died', 'failed' with an error, 'hung') -> how often."""


ToWatcher = Snapshot | History | Activity | OrderEnded
TO_WATCHER: msgspec.msgpack.Decoder[ToWatcher] = msgspec.msgpack.Decoder(ToWatcher)
