"""What a person wants to know of an engine, from two snapshots: pure figures, rates and shares."""

from __future__ import annotations

import msgspec

from ...ipc.messages import Snapshot, StageStats

WORK = {"compute": "tokens", "loader": "experts", "predictor": "forecasts", "scheduler": "requests"}
"""What `StageStats.done` counts."""
SUPERVISOR = "supervisor"
RESTART = "its restart"
"""What a stage waits for that has died."""


class Progressed(msgspec.Struct, frozen=True):
    """How far a stage came between two snapshots; several add up, also over restarts."""

    time_ns: int = 0
    busy_ns: int = 0
    done: int = 0
    counters: dict[str, int | float] = {}

    def __add__(self, other: Progressed) -> Progressed:
        names = self.counters | other.counters
        counters = {name: self.counters.get(name, 0) + other.counters.get(name, 0) for name in names}
        return Progressed(self.time_ns + other.time_ns, self.busy_ns + other.busy_ns, self.done + other.done, counters)


class StageLine(msgspec.Struct, frozen=True, kw_only=True):
    """One process. None: not known yet."""

    stage: str
    work: str
    pid: int | None
    rate_per_s: float | None
    busy_share: float | None
    queue: int | None
    waiting_on: str
    restarts: int
    pss_bytes: int


class ExpertLine(msgspec.Struct, frozen=True, kw_only=True):
    """Experts on the move. Counts of `Progressed` cover the watched time; None: not known yet."""

    hits: int
    misses: int
    loads: int
    loaded_bytes: int
    bytes_per_s: float | None
    stall_ns: int
    stall_share: float | None
    kv_bytes: int
    slots: int
    slots_bytes: int
    experts_bytes: int
    """Of the whole model."""

    @property
    def hit_share(self) -> float | None:
        """Of the experts that layers needed, those that were there when the layer began."""
        needed = self.hits + self.misses
        return self.hits / needed if needed else None


class DecodingLine(msgspec.Struct, frozen=True, kw_only=True):
    """How the scheduler decodes, as far as it was measured."""

    units: int
    prediction: bool
    """False: forecasts and hints cost more than they saved."""
    grouping: bool
    trials: int
    """Of other ways, to see whether they are faster."""
    regroupings: int
    rows_moved: int


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `top` shows of an engine."""

    engine: str = ""
    """Of several: its device."""
    seconds: float
    stages: list[StageLine]
    experts: ExpertLine
    decoding: DecodingLine | None
    """None: not known yet."""
    pss_bytes: int


def progressed(before: Snapshot, now: Snapshot) -> dict[str, Progressed]:
    """By stage. Of one that was restarted in between, only its new start counts."""
    return {stage: _since(before.stages.get(stage), stats) for stage, stats in now.stages.items()}


def totals(now: Snapshot) -> dict[str, Progressed]:
    """By stage, since its last start; without times, so it gives no rates."""
    return {stage: Progressed(0, 0, stats.done, stats.counters) for stage, stats in now.stages.items()}


class Meter:
    """Adds up what happens from the first snapshot on; given one at least every few seconds, restarts lose little."""

    def __init__(self, first: Snapshot) -> None:
        self._last = first
        self._sums: dict[str, Progressed] = {}
        self._kv_peak_bytes = 0

    def add(self, now: Snapshot) -> None:
        self._kv_peak_bytes = max(self._kv_peak_bytes, kv_bytes(now))
        for stage, gained in progressed(self._last, now).items():
            self._sums[stage] = self._sums.get(stage, Progressed()) + gained
        self._last = now

    def reading(self, seconds: float) -> Reading:
        """Counts of the whole time, rates over the `seconds` in which all happened; KV caches at their largest."""
        time_ns = round(seconds * 1e9)
        rates = {stage: msgspec.structs.replace(gained, time_ns=time_ns) for stage, gained in self._sums.items()}
        reading = read(self._last, rates, rates, seconds)
        experts = msgspec.structs.replace(reading.experts, kv_bytes=self._kv_peak_bytes)
        return msgspec.structs.replace(reading, experts=experts)


def read_pair(before: Snapshot, now: Snapshot) -> Reading:
    """Rates between the two; counts since each stage's last start."""
    return read(now, progressed(before, now), totals(now), (now.time_ns - before.time_ns) / 1e9)


def read(now: Snapshot, rates: dict[str, Progressed], counts: dict[str, Progressed], seconds: float) -> Reading:
    """`rates` covers the time that rates refer to, `counts` what is shown as counts."""
    stages = [_stage_line(stage, now, rates.get(stage, Progressed())) for stage in sorted(now.pss_bytes.keys())]
    return Reading(
        seconds=seconds,
        stages=sorted(stages, key=lambda line: (line.stage == SUPERVISOR, line.stage)),
        experts=_expert_line(now, rates, counts),
        decoding=_decoding_line(now, counts.get("scheduler", Progressed()).counters),
        pss_bytes=sum(now.pss_bytes.values()),
    )


def _since(before: StageStats | None, now: StageStats) -> Progressed:
    if before is None:
        return Progressed(0, 0, now.done, now.counters)
    elapsed_ns = now.time_ns - before.time_ns
    if before.epoch != now.epoch:
        return Progressed(elapsed_ns, now.busy_ns, now.done, now.counters)
    counters = {name: value - before.counters.get(name, 0) for name, value in now.counters.items()}
    return Progressed(elapsed_ns, now.busy_ns - before.busy_ns, now.done - before.done, counters)


def _stage_line(stage: str, now: Snapshot, gained: Progressed) -> StageLine:
    stats = now.stages.get(stage)
    return StageLine(
        stage=stage,
        work=WORK.get(stage, ""),
        pid=stats.pid if stats else None,
        rate_per_s=_per(gained.done * 1e9, gained.time_ns),
        busy_share=_share(gained.busy_ns, gained.time_ns),
        queue=stats.queue if stats else None,
        waiting_on=RESTART if stage in now.down else stats.waiting_on if stats else "",
        restarts=now.restarts.get(stage, 0),
        pss_bytes=now.pss_bytes[stage],
    )


def _expert_line(now: Snapshot, rates: dict[str, Progressed], counts: dict[str, Progressed]) -> ExpertLine:
    compute, loader = counts.get("compute", Progressed()).counters, counts.get("loader", Progressed()).counters
    recent = rates.get("compute", Progressed())
    loading = rates.get("loader", Progressed())
    facts = now.facts.get("loader", {})
    slots = int(facts.get("slots", 0))
    return ExpertLine(
        hits=int(compute.get("hits", 0)),
        misses=int(compute.get("misses", 0)),
        loads=int(loader.get("loads", 0)),
        loaded_bytes=int(loader.get("bytes", 0)),
        bytes_per_s=_per(loading.counters.get("bytes", 0) * 1e9, loading.time_ns),
        stall_ns=int(compute.get("stall_ns", 0)),
        stall_share=_per(recent.counters.get("stall_ns", 0), recent.time_ns),
        kv_bytes=kv_bytes(now),
        slots=slots,
        slots_bytes=slots * int(facts.get("slot_bytes", 0)),
        experts_bytes=int(facts.get("experts_bytes", 0)),
    )


def _decoding_line(now: Snapshot, counters: dict[str, int | float]) -> DecodingLine | None:
    """The way of now; counts of the watched time."""
    levels = now.stages["scheduler"].counters if "scheduler" in now.stages else {}
    if "units_wanted" not in levels:
        return None
    return DecodingLine(
        units=int(levels["units_wanted"]),
        prediction=bool(levels["prediction_wanted"]),
        grouping=bool(levels["grouping_wanted"]),
        trials=int(counters.get("trials", 0)),
        regroupings=int(counters.get("regroupings", 0)),
        rows_moved=int(counters.get("rows_moved", 0)),
    )


def kv_bytes(now: Snapshot) -> int:
    """Of the KV caches as they are."""
    return int(now.stages["compute"].counters.get("kv_bytes", 0)) if "compute" in now.stages else 0


def _share(part_ns: int, whole_ns: int) -> float | None:
    """At most 1: the two clocks are not read at once."""
    return min(1.0, part_ns / whole_ns) if whole_ns else None


def _per(amount: float, base: float) -> float | None:
    return amount / base if base else None
