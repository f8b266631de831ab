"""Histories made by hand: one thing happens, and it is known what is to blame."""

from __future__ import annotations

from typing import Any

from expertflow.ipc.messages import Span
from expertflow.runtime.waits.history import History, read_history

Spans = list[tuple[str, Span]]
MS = 1_000_000


def span(stage: str, name: str, start_ms: float, end_ms: float, **detail: Any) -> tuple[str, Span]:
    return stage, Span(name, round(start_ms * MS), round(end_ms * MS), 0, detail)


def step(number: int, start_ms: float, end_ms: float) -> tuple[str, Span]:
    return span("compute", "decode", start_ms, end_ms, step=number, unit=1)


def stall(start_ms: float, end_ms: float, experts: str, step: int = 1, layer: int = 0, wanted: int = 2) -> Any:
    detail = {"step": step, "layer": layer, "experts": experts, "wanted": wanted}
    return span("compute", "stall", start_ms, end_ms, **detail, arrived="")


def miss(at_ms: float, expert: int, reason: str, step: int = 1, layer: int = 0, slots: int = 8) -> Any:
    what = {"step": step, "layer": layer, "expert": expert, "reason": reason, "under_way": "", "slots": slots}
    return span("loader", "miss", at_ms, at_ms, **what, chance_percent=20, wanted_percent=40)


def load(
    start_ms: float,
    end_ms: float,
    layer: int,
    expert: int,
    cause: str,
    step: int = 1,
    slot: int = 0,
    queued_us: int = 0,
) -> Any:
    detail = {"layer": layer, "expert": expert, "cause": cause, "step": step, "slot": slot, "queued_us": queued_us}
    return span("loader", "load", start_ms, end_ms, **detail)


def evict(at_ms: float, slot: int, layer: int, expert: int, cause: str, for_step: int = 1, for_layer: int = 0) -> Any:
    detail = {"slot": slot, "layer": layer, "expert": expert, "cause": cause}
    return span("loader", "evict", at_ms, at_ms, **detail, for_step=for_step, for_layer=for_layer)


def unused(at_ms: float, layer: int, expert: int, step: int = 1) -> tuple[str, Span]:
    return span("loader", "unused", at_ms, at_ms, step=step, layer=layer, expert=expert)


def history(*spans: tuple[str, Span]) -> History:
    """In no order, as several stages publish them."""
    return read_history(reversed(spans))
