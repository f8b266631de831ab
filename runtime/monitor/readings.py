"""Figures of an engine from two snapshots: counts, rates and shares."""

from __future__ import annotations

import msgspec

from ...ipc.messages import Snapshot, StageStats
from ..client.snapshots import split_snapshot

WORK = {"compute": "tokens", "loader": "experts", "predictor": "forecasts", "scheduler": "requests"}
"""Stage -> the unit of `StageStats.done`."""
SUPERVISOR = "supervisor"
RESTART = "its restart"
"""Shown as what a dead stage waits for."""


class StageDelta(msgspec.Struct, frozen=True):
    """Progress of a stage between two snapshots; deltas add up, also over restarts."""

    time_ns: int = 0
    busy_ns: int = 0
    done: int = 0
    stalled_ns: int = 0
    counters: dict[str, int | float] = {}

    def __add__(self, other: StageDelta) -> StageDelta:
        names = self.counters | other.counters
        counters = {name: self.counters.get(name, 0) + other.counters.get(name, 0) for name in names}
        return StageDelta(
            time_ns=self.time_ns + other.time_ns,
            busy_ns=self.busy_ns + other.busy_ns,
            done=self.done + other.done,
            stalled_ns=self.stalled_ns + other.stalled_ns,
            counters=counters,
        )


class StageLine(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one process. None: not known yet."""

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
    """Figures of experts: hits, misses, loads, stalls. Counts cover the watched time; None: not known yet."""

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
    """Size of all experts of the model."""

    @property
    def hit_share(self) -> float | None:
        """Return the share of hits among the experts that layers needed; None without any."""
        needed = self.hits + self.misses
        return self.hits / needed if needed else None


class DecodingLine(msgspec.Struct, frozen=True, kw_only=True):
    """Way in which the scheduler decodes, chosen by measurement."""

    units: int
    prediction: bool
    """False: predictions and hints cost more than they saved."""
    grouping: bool
    trials: int
    """Number of trials of other ways to decode."""
    regroupings: int
    rows_moved: int


class MemoryLine(msgspec.Struct, frozen=True, kw_only=True):
    """Memory against its budgets, in bytes. The budget of experts is `ExpertLine.slots_bytes`."""

    experts_bytes: int
    """Slots that hold an expert, or that one is on its way to."""
    kv_bytes: int
    kv_budget_bytes: int
    """Budget of the KV caches; 0: not known."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `top` shows of an engine."""

    engine: str = ""
    """Device of an engine in a group; else empty."""
    seconds: float
    stages: list[StageLine]
    experts: ExpertLine
    decoding: DecodingLine | None
    """None: not known yet."""
    pss_bytes: int
    memory: MemoryLine


def stage_deltas(before: Snapshot, now: Snapshot) -> dict[str, StageDelta]:
    """Return stage -> its delta; a stage restarted in between counts from its new start."""
    return {stage: _delta_since(before.stages.get(stage), stats) for stage, stats in now.stages.items()}


def totals(now: Snapshot) -> dict[str, StageDelta]:
    """Return stage -> its counts since its last start, without times and so without rates."""
    return {stage: _delta_since(None, stats) for stage, stats in now.stages.items()}


class Meter:
    """Adds up the deltas of successive snapshots. With a snapshot every few seconds a restart loses little."""

    def __init__(self, first: Snapshot) -> None:
        self._last = first
        self._sums: dict[str, StageDelta] = {}
        self._kv_peak_bytes = 0

    def add(self, now: Snapshot) -> None:
        """Add the delta from the last snapshot to `now`."""
        self._kv_peak_bytes = max(self._kv_peak_bytes, kv_bytes(now))
        for stage, delta in stage_deltas(self._last, now).items():
            self._sums[stage] = self._sums.get(stage, StageDelta()) + delta
        self._last = now

    def reading(self, seconds: float) -> Reading:
        """Return counts of the whole time, rates over its `seconds`, and the largest size of the KV caches."""
        time_ns = round(seconds * 1e9)
        rates = {stage: msgspec.structs.replace(delta, time_ns=time_ns) for stage, delta in self._sums.items()}
        reading = read(self._last, rates, rates, seconds)
        experts = msgspec.structs.replace(reading.experts, kv_bytes=self._kv_peak_bytes)
        return msgspec.structs.replace(reading, experts=experts)


class EngineMeters:
    """A `Meter` for each of several engines; an ended engine keeps its last counts."""

    def __init__(self, first: Snapshot) -> None:
        self._meters = {engine: Meter(snapshot) for engine, snapshot in split_snapshot(first).items()}

    def add(self, now: Snapshot) -> None:
        """Add a merged snapshot of all engines."""
        for engine, snapshot in split_snapshot(now).items():
            self._meters[engine].add(snapshot)

    def readings(self, seconds: float) -> list[Reading]:
        """Return the reading of each engine; see `Meter.reading`."""
        return [
            msgspec.structs.replace(meter.reading(seconds), engine=engine) for engine, meter in self._meters.items()
        ]


def read_pair(before: Snapshot, now: Snapshot) -> Reading:
    """Return rates between two snapshots, and counts since each stage's last start."""
    return read(now, stage_deltas(before, now), totals(now), (now.time_ns - before.time_ns) / 1e9)


def read_pairs(before: Snapshot, now: Snapshot) -> list[Reading]:
    """Return the reading of each engine that is in both snapshots; see `read_pair`."""
    earlier = split_snapshot(before)
    return [
        msgspec.structs.replace(read_pair(earlier[engine], snapshot), engine=engine)
        for engine, snapshot in split_snapshot(now).items()
        if engine in earlier
    ]


def read(now: Snapshot, rates: dict[str, StageDelta], counts: dict[str, StageDelta], seconds: float) -> Reading:
    """Return a reading; rates come from the deltas `rates`, counts from the deltas `counts`."""
    stages = [_stage_line(stage, now, rates.get(stage, StageDelta())) for stage in sorted(now.pss_bytes.keys())]
    return Reading(
        seconds=seconds,
        stages=sorted(stages, key=lambda line: (line.stage == SUPERVISOR, line.stage)),
        experts=_expert_line(now, rates, counts),
        decoding=_decoding_line(now, counts.get("scheduler", StageDelta()).counters),
        pss_bytes=sum(now.pss_bytes.values()),
        memory=_memory_line(now),
    )


def _delta_since(before: StageStats | None, now: StageStats) -> StageDelta:
    if before is None:
        return StageDelta(0, 0, now.done, now.stalled_ns, now.counters)
    elapsed_ns = now.time_ns - before.time_ns
    if before.epoch != now.epoch:
        return StageDelta(elapsed_ns, now.busy_ns, now.done, now.stalled_ns, now.counters)
    counters = {name: value - before.counters.get(name, 0) for name, value in now.counters.items()}
    return StageDelta(
        time_ns=elapsed_ns,
        busy_ns=now.busy_ns - before.busy_ns,
        done=now.done - before.done,
        stalled_ns=now.stalled_ns - before.stalled_ns,
        counters=counters,
    )


def _stage_line(stage: str, now: Snapshot, delta: StageDelta) -> StageLine:
    stats = now.stages.get(stage)
    return StageLine(
        stage=stage,
        work=WORK.get(stage, ""),
        pid=stats.pid if stats else None,
        rate_per_s=_per(delta.done * 1e9, delta.time_ns),
        busy_share=_share(delta.busy_ns, delta.time_ns),
        queue=stats.queue if stats else None,
        waiting_on=RESTART if stage in now.down else stats.waiting_on if stats else "",
        restarts=now.restarts.get(stage, 0),
        pss_bytes=now.pss_bytes[stage],
    )


def _expert_line(now: Snapshot, rates: dict[str, StageDelta], counts: dict[str, StageDelta]) -> ExpertLine:
    compute, loader = counts.get("compute", StageDelta()).counters, counts.get("loader", StageDelta()).counters
    recent = rates.get("compute", StageDelta())
    loading = rates.get("loader", StageDelta())
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


def _memory_line(now: Snapshot) -> MemoryLine:
    loader = now.stages["loader"].counters if "loader" in now.stages else {}
    slots = int(loader.get("held", 0)) + int(loader.get("filling", 0))
    return MemoryLine(
        experts_bytes=slots * int(now.facts.get("loader", {}).get("slot_bytes", 0)),
        kv_bytes=kv_bytes(now),
        kv_budget_bytes=int(now.facts.get("scheduler", {}).get("kv_budget_bytes", 0)),
    )


def _decoding_line(now: Snapshot, counters: dict[str, int | float]) -> DecodingLine | None:
    """Return the present way of decoding; counts cover the watched time."""
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
    """Return the present size of the KV caches in bytes."""
    return int(now.stages["compute"].counters.get("kv_bytes", 0)) if "compute" in now.stages else 0


def _share(part_ns: int, whole_ns: int) -> float | None:
    """Return the share, at most 1: the two times are not read at the same moment."""
    return min(1.0, part_ns / whole_ns) if whole_ns else None


def _per(amount: float, base: float) -> float | None:
    return amount / base if base else None
