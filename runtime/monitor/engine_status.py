"""The state of an engine in one screen: is it healthy, since when does it run, what is open, what may it use."""

from __future__ import annotations

import msgspec

from ...configs.sizes import format_size
from ...ipc.messages import Snapshot, StageStats
from ..client.snapshots import split_snapshot

SILENT_S = 10.0
"""Age of its last statistics at which a stage counts as silent; it publishes every second."""
RESTARTS, DOWN, SILENT, UP = "starts again", "not up", "silent", "up"


class StageStatus(msgspec.Struct, frozen=True, kw_only=True):
    """State of one stage."""

    state: str
    """up, silent, starts again, not up."""
    pid: int
    epoch: int
    restarts: int
    age_s: float
    """Seconds since it published its statistics."""


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """State of one engine. Figures are those of its stages' last statistics."""

    address: str
    device: str
    model: str
    state: str
    """starting, ready, reloading, draining."""
    healthy: bool
    """Ready, and every stage is up."""
    uptime_s: float
    stages: dict[str, StageStatus]
    running: int
    waiting: int
    finished: int
    """Requests that ended since the engine runs, well or not."""
    slots: int
    slots_bytes: int
    experts_bytes: int
    kv_bytes: int
    kv_budget_bytes: int
    options: dict[str, str]
    """Fields that `expertflow reload` changes, as they are now."""


def engine_statuses(address: str, snapshot: Snapshot) -> list[EngineStatus]:
    """Return the status of every engine in a snapshot, which may be of a group."""
    return [_status(address, device, each) for device, each in split_snapshot(snapshot).items()]


def status_lines(status: EngineStatus) -> list[str]:
    """Return the status as lines of text."""
    verdict = "healthy" if status.healthy else "not healthy"
    name = status.model + (f" on {status.device}" if status.device else "")
    lines = [f"{name}: {status.state}, {verdict}, for {_duration(status.uptime_s)}", f"address   {status.address}"]
    for stage, each in status.stages.items():
        lines.append(f"{stage:<9} {each.state}, epoch {each.epoch}, restarts {each.restarts}, pid {each.pid}")
    lines.append(f"requests  {status.running} running, {status.waiting} waiting, {status.finished:,} ended")
    experts = f"{status.slots:,} slots ({format_size(status.slots_bytes)} of {format_size(status.experts_bytes)})"
    kv = f"KV caches {format_size(status.kv_bytes)} of {format_size(status.kv_budget_bytes)}"
    lines.append(f"memory    {experts}, {kv}")
    lines.append("options   " + ", ".join(f"{name} {value}" for name, value in status.options.items()))
    return lines


def _status(address: str, device: str, now: Snapshot) -> EngineStatus:
    own, loader, scheduler = (now.facts.get(name, {}) for name in ("supervisor", "loader", "scheduler"))
    stages = {stage: _stage_status(stage, now) for stage in now.restarts}
    counts = _counters(now, "scheduler")
    ended = now.ended.get("scheduler")
    slots, state = int(loader.get("slots", 0)), str(own.get("state", "starting"))
    return EngineStatus(
        address=address,
        device=device,
        model=str(scheduler.get("model", "")),
        state=state,
        healthy=state == "ready" and bool(stages) and all(each.state == UP for each in stages.values()),
        uptime_s=round((now.time_ns - int(own.get("started_ns", now.time_ns))) / 1e9, 1),
        stages=stages,
        running=int(counts.get("running", 0)),
        waiting=int(counts.get("queue", 0)),
        finished=int(counts.get("done", 0)) + (int(ended.counters.get("done", 0)) if ended else 0),
        slots=slots,
        slots_bytes=slots * int(loader.get("slot_bytes", 0)),
        experts_bytes=int(loader.get("experts_bytes", 0)),
        kv_bytes=int(_counters(now, "compute").get("kv_bytes", 0)),
        kv_budget_bytes=int(scheduler.get("kv_budget_bytes", 0)),
        options={name: str(value) for name, value in own.items() if name not in ("state", "started_ns")},
    )


def _counters(now: Snapshot, stage: str) -> dict[str, int | float]:
    return now.stages[stage].counters if stage in now.stages else {}


def _stage_status(stage: str, now: Snapshot) -> StageStatus:
    stats = now.stages.get(stage)
    age_s = round((now.time_ns - stats.time_ns) / 1e9, 1) if stats else 0.0
    return StageStatus(
        state=_stage_state(stage, stats, age_s, now),
        pid=stats.pid if stats else 0,
        epoch=stats.epoch if stats else 0,
        restarts=now.restarts[stage],
        age_s=age_s,
    )


def _stage_state(stage: str, stats: StageStats | None, age_s: float, now: Snapshot) -> str:
    if stage in now.down:
        return RESTARTS
    if stats is None:
        return DOWN
    return SILENT if age_s > SILENT_S else UP


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{days} d"] * bool(days) + [f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(minutes)
    return " ".join((parts or [f"{rest} s"])[:2])
