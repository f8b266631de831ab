"""The screen of `top`: sections that fit the width and the height of a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...configs.sizes import format_size
from ...ipc.messages import CacheHeat, HistoryPoint, OpenRequest
from .blocks import bar, bin_map, shade, sparkline
from .engine_views import EngineView, output_rate
from .readings import RESTART, StageLine
from .tables import UNKNOWN, decoding_facts, expert_facts, facts_table, plain_table, share_text

PAGES = ("overview", "experts", "requests", "waits")
"""Pages of the screen; tab and the arrow keys walk through them."""
SPARK_WIDTH = 16
MAP_ROWS = 8
USE_STYLES = ("dim", "blue", "cyan", "green", "yellow", "red")
"""Style of an expert by the share of recent steps that used it, from never to always."""
REASONS = 4
ID_WIDTH = 12


class Size(NamedTuple):
    """Room for a screen, in characters."""

    width: int
    height: int


def screen(view: EngineView, page: str, size: Size) -> Group:
    """Return one page for an engine, with its headline; lines are cut, never wrapped."""
    parts = {"overview": _overview, "experts": _experts, "requests": _requests, "waits": _waits}[page](view, size)
    return Group(*headline(view, size.width), *parts)


def headline(view: EngineView, width: int) -> Iterator[RenderableType]:
    """Yield the figures that matter most: what does not fit the width is left out at the end."""
    if view.engine:
        yield _cut(view.engine, width, "bold")
    point, experts = view.point, view.reading.experts
    speed = 0.0 if point is None else output_rate(point)
    hits = point.hit_share if point is not None and point.hit_share is not None else experts.hit_share
    stall = _stall_share(view)
    figures = [f"{speed:,.1f} tokens/s", f"hits {share_text(hits)}", f"waiting {share_text(stall)}",
               f"overlap {share_text(view.waits.overlap)}"]  # fmt: skip
    if point is not None:
        figures.append(f"{point.running} running, {point.waiting} queued")
    yield _cut("   ".join(_fitting(figures, width, 3)), width, "bold")
    for stage in view.down:
        yield _cut(f"{stage} has ended and is started again", width, "bold red")


def stage_columns(width: int) -> list[str]:
    """Return the columns of the table of stages that fit `width`.

    Columns drop out in this order: trend of the busy share, restarts, memory, trend of the rate, queue.
    """
    widths = {"busy trend": 12, "restarts": 10, "memory": 11, "trend": SPARK_WIDTH + 2, "queue": 7}
    kept = dict(widths)
    for name in widths:
        if sum(kept.values()) + 50 <= width:
            break
        del kept[name]
    order = ("stage", "throughput", "trend", "busy", "busy trend", "queue", "waits for", "restarts", "memory")
    return [name for name in order if name in kept or name not in widths]


def _overview(view: EngineView, size: Size) -> Iterator[RenderableType]:
    yield Text()
    yield _stage_table(view, size.width)
    left = size.height - len(view.reading.stages) - 5 - bool(view.engine) - len(view.down)
    sections: list[Callable[[EngineView, Size], list[RenderableType]]] = [
        _memory_section, _reason_section, _step_section, _heat_section, _request_section,
    ]  # fmt: skip
    for section in sections:
        lines = section(view, Size(size.width, left - 1))
        if lines and len(lines) < left:
            yield Text()
            yield from lines
            left -= len(lines) + 1


def _stage_table(view: EngineView, width: int) -> Table:
    columns = stage_columns(width)
    table = plain_table(*columns)
    for column in table.columns:
        column.no_wrap = True
    for line in view.reading.stages:
        cells = _stage_cells(view, line)
        table.add_row(*(_plain(cells[name]) for name in columns), style="red" if line.stage in view.down else "")
    return table


def _stage_cells(view: EngineView, line: StageLine) -> dict[str, str]:
    points = [point.stages.get(line.stage) for point in view.points[-SPARK_WIDTH:]]
    rates = [None if point is None else point.rate_per_s for point in points]
    busy = [None if point is None else point.busy_share for point in points]
    rate, share = line.rate_per_s, line.busy_share
    if points and points[-1] is not None:
        rate, share = points[-1].rate_per_s, points[-1].busy_share
    return {
        "stage": line.stage,
        "throughput": f"{rate:,.1f} {line.work}/s" if rate is not None and line.work else UNKNOWN,
        "trend": sparkline(rates, SPARK_WIDTH) if line.work else "",
        "busy": share_text(share),
        "busy trend": sparkline(busy, 10, 1.0) if line.work else "",
        "queue": UNKNOWN if line.queue is None else f"{line.queue:,}",
        "waits for": RESTART if line.stage in view.down else line.waiting_on or UNKNOWN,
        "restarts": str(line.restarts),
        "memory": format_size(line.pss_bytes),
    }


def _memory_section(view: EngineView, size: Size) -> list[RenderableType]:
    reading = view.reading
    rows = [("experts", reading.memory.experts_bytes, reading.experts.slots_bytes),
            ("KV caches", reading.memory.kv_bytes, reading.memory.kv_budget_bytes)]  # fmt: skip
    width = max(6, min(40, size.width - 44))
    lines: list[RenderableType] = []
    for name, used, budget in rows:
        if budget:
            share = f"{format_size(used):>9} of {format_size(budget):>9}"
            lines.append(_cut(f"{name:<11}{bar(used / budget, width)} {share}", size.width))
    total = format_size(reading.pss_bytes)
    lines.append(_cut(f"{'processes':<11}{'':{width}} {total:>9} in all (PSS)", size.width))
    return lines


def _reason_section(view: EngineView, size: Size, limit: int = REASONS) -> list[RenderableType]:
    waits = view.waits
    if not waits.steps:
        return []
    share = share_text(waits.waited_ns / max(waits.took_ns, 1))
    lines: list[RenderableType] = [
        _cut(f"The last {len(waits.steps)} steps waited for experts {share} of their time", size.width, "bold")
    ]
    known_ns = max(1, sum(waits.reasons.values()))
    for name, time_ns in list(waits.reasons.items())[:limit]:
        part = time_ns / known_ns
        lines.append(_cut(f"{share_text(part):>5} {bar(part, 10)} {name}: {waits.meanings.get(name, '')}", size.width))
    return lines


def _step_section(view: EngineView, size: Size) -> list[RenderableType]:
    steps = view.waits.steps
    if not steps:
        return []
    shown = steps[-max(1, size.width - 26) :]
    longest = max(step.took_ns for step in shown)
    took = sparkline([step.took_ns for step in shown], len(shown))
    waited = sparkline([step.waited_ns for step in shown], len(shown), longest)
    return [
        _cut(f"{'steps':<11}{took} up to {_time_text(longest)}", size.width),
        _cut(f"{'waited':<11}{waited}", size.width, "yellow"),
    ]


def _heat_section(view: EngineView, size: Size) -> list[RenderableType]:
    rows = min(MAP_ROWS, size.height - 2)
    return heat_map(view.heat, Size(size.width, rows)) if view.heat is not None and rows >= 2 else []


def heat_map(heat: CacheHeat, size: Size) -> list[RenderableType]:
    """Return the cache as lines: a row for each layer (or some), a character for each expert (or some)."""
    shape = (heat.layers, heat.experts)
    held = (np.frombuffer(heat.residence, np.uint8) >= 2).reshape(shape)
    counted = len(heat.use) == heat.layers * heat.experts
    use = np.frombuffer(heat.use, np.uint8).reshape(shape) / 255 if counted else np.zeros(shape)
    label = len(str(heat.layers)) + 7
    columns = max(1, size.width - label)
    shares, uses = (bin_map(values, size.height, columns) for values in (held, use))
    tops = np.quantile(use, 0.95) or 1.0
    lines: list[RenderableType] = [
        _cut(f"Experts in memory: {int(held.sum()):,} of {held.size:,}   · none  ░▒▓ some  █ all", size.width, "bold")
    ]
    for row in range(len(shares)):
        line = Text(f"layer {row * heat.layers // len(shares)}".ljust(label), style="dim")
        for share, used in zip(shares[row], uses[row], strict=True):
            line.append(shade(share), USE_STYLES[min(len(USE_STYLES) - 1, int(len(USE_STYLES) * used / tops))])
        lines.append(line)
    return lines


def _request_section(view: EngineView, size: Size) -> list[RenderableType]:
    requests = view.requests
    if requests is None or size.height < 3 or not requests.requests:
        return []
    shown = requests.requests[: size.height - 2]
    hidden = requests.total - len(shown)
    lines: list[RenderableType] = [_cut(_request_text(None), size.width, "bold")]
    lines += [_cut(_request_text(request), size.width) for request in shown]
    return [*lines, _cut(f"and {hidden:,} more", size.width, "dim")] if hidden else lines


def _request_text(request: OpenRequest | None) -> str:
    """Return one line; None: the names of the columns."""
    if request is None:
        cells = ("request", "state", "prompt", "tokens", "limit", "age", "user")
    else:
        age = _time_text(request.age_ns)
        counts = (f"{request.prompt_tokens:,}", f"{request.tokens:,}", f"{request.token_limit:,}")
        cells = (request.request_id, request.state, *counts, age, request.user or UNKNOWN)
    name, state, prompt, tokens, limit, age, user = cells
    return f"{name[:ID_WIDTH]:<{ID_WIDTH}} {state:<8}{prompt:>7}{tokens:>7}{limit:>7}{age:>9}  {user[:16]}"


def _experts(view: EngineView, size: Size) -> Iterator[RenderableType]:
    yield Text()
    yield facts_table({**expert_facts(view.reading.experts), **decoding_facts(view.reading.decoding)})
    yield Text()
    if view.heat is None:
        yield Text("The loader has not reported yet", style="dim")
    else:
        yield from heat_map(view.heat, Size(size.width, max(4, size.height - 14)))


def _requests(view: EngineView, size: Size) -> Iterator[RenderableType]:
    yield Text()
    lines = _request_section(view, Size(size.width, size.height - 3))
    yield from lines or [Text("No request is open", style="dim")]


def _waits(view: EngineView, size: Size) -> Iterator[RenderableType]:
    yield Text()
    lines = [*_reason_section(view, size, 12), *_step_section(view, size)]
    yield from lines or [Text("No step has run since this began to watch", style="dim")]
    if view.waits.unexplained_ns:
        share = share_text(view.waits.unexplained_ns / max(view.waits.waited_ns, 1))
        words = f"{share} of the waiting has no reason noted: only the start of every third second is"
        yield _cut(words, size.width, "dim")
    yield Text()
    for line in view.waits.longest[: max(0, size.height - len(lines) - 5)]:
        yield _cut(line, size.width)


def _stall_share(view: EngineView) -> float | None:
    newest: HistoryPoint | None = view.point
    if newest is not None and (stage := newest.stages.get("compute")) is not None and stage.stall_share is not None:
        return stage.stall_share
    return view.reading.experts.stall_share


def _fitting(figures: list[str], width: int, gap: int) -> Iterator[str]:
    for figure in figures:
        width -= len(figure) + gap
        if width + gap < 0:
            return
        yield figure


def _cut(text: str, width: int, style: str = "") -> Text:
    """Return one line of at most `width` characters."""
    line = Text(_plain(text), style=style, no_wrap=True, overflow="ellipsis")
    line.truncate(width, overflow="ellipsis")
    return line


def _plain(text: str) -> str:
    """Return a text of a client, or of a stranger's bundle, without characters that a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _time_text(time_ns: int) -> str:
    seconds = time_ns / 1e9
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
