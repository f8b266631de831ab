"""Readings and plans as plain tables for a terminal, a log or an issue."""

from __future__ import annotations

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ...configs.sizes import format_size
from .readings import DecodingLine, ExpertLine, Reading, StageLine

UNKNOWN = "–"
PREDICTION_OFF = "off: it cost more than it saved"
MIN_COLUMNS = 100
"""Least width of output that is no terminal."""


def result_console() -> Console:
    """Return a console on stdout, at least `MIN_COLUMNS` wide if stdout is no terminal."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(MIN_COLUMNS, console.width)
    return console


def reading_view(reading: Reading) -> Group:
    """Return the table of stages, with the facts about experts below."""
    facts = {**expert_facts(reading.experts), **decoding_facts(reading.decoding)}
    return Group(stage_table(reading.stages), Text(), facts_table(facts))


def readings_view(readings: list[Reading]) -> Group:
    """Return the views of several readings, each under the name of its engine, if any."""
    views = [reading_view(reading) for reading in readings]
    titles = [Text(f"\n{reading.engine}" if reading.engine else "", style="bold") for reading in readings]
    return Group(*(part for pair in zip(titles, views, strict=True) for part in pair if part))


def stage_table(lines: list[StageLine]) -> Table:
    """Return a table with one row a process."""
    table = plain_table("stage", "throughput", "busy", "queue", "waits for", "restarts", "memory (PSS)")
    for line in lines:
        table.add_row(
            line.stage,
            _rate(line),
            share_text(line.busy_share),
            UNKNOWN if line.queue is None else str(line.queue),
            line.waiting_on or UNKNOWN,
            str(line.restarts),
            format_size(line.pss_bytes),
        )
    table.add_section()
    table.add_row("all", "", "", "", "", "", format_size(sum(line.pss_bytes for line in lines)))
    return table


def expert_facts(line: ExpertLine) -> dict[str, str]:
    """Return name -> value of the figures of experts, in words."""
    rate = UNKNOWN if line.bytes_per_s is None else f"{format_size(line.bytes_per_s)}/s"
    return {
        "experts found in memory": f"{line.hits:,} of {line.hits + line.misses:,} ({share_text(line.hit_share)})",
        "experts loaded": f"{line.loads:,} ({format_size(line.loaded_bytes)}; {rate})",
        "compute waited for experts": f"{line.stall_ns / 1e9:.2f} s ({share_text(line.stall_share)} of the time)",
        "experts in memory": f"{format_size(line.slots_bytes)} of the model's {format_size(line.experts_bytes)}",
        "KV caches": format_size(line.kv_bytes) if line.kv_bytes else UNKNOWN,
    }


def decoding_facts(line: DecodingLine | None) -> dict[str, str]:
    """Return name -> value of the scheduler's way of decoding, in words."""
    if line is None:
        return {}
    moved = f"{line.regroupings:,} times, {line.rows_moved:,} rows"
    return {
        "units in flight": f"{line.units} ({line.trials:,} trials of other ways to decode)",
        "prediction": "on" if line.prediction else PREDICTION_OFF,
        "rows regrouped": moved if line.grouping or line.regroupings else "no",
    }


def facts_table(facts: dict[str, str]) -> Table:
    """Return a table of names and values."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a long path goes on in the next line, so that it can be copied
    for name, value in facts.items():
        table.add_row(Text(name), Text(value))
    return table


def plain_table(first: str, *others: str) -> Table:
    """Return a table without lines; the first column is aligned left, the others right."""
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def share_text(share: float | None) -> str:
    """Return a share in percent: `37 %`."""
    return UNKNOWN if share is None else f"{100 * share:.0f} %"


def _rate(line: StageLine) -> str:
    if not line.work:
        return ""
    return UNKNOWN if line.rate_per_s is None else f"{line.rate_per_s:,.1f} {line.work}/s"
