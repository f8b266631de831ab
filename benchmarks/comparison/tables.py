"""Write a comparison as JSON, as a page in Markdown with its columns explained, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ..intervals import Interval
from ..machine import cpu_kind
from ..plots.comparison import draw_comparison
from .rows import Cell

NONE = "–"


class Column(NamedTuple):
    title: str
    text: Callable[[Any], str]
    meaning: str = ""
    """For a newcomer; empty where the title says it."""


def share(value: float) -> str:
    return f"{100 * value:.0f} %"


def mb(value: float) -> str:
    return f"{value / 1e6:.0f}"


def ms(value: float) -> str:
    return f"{1e3 * value:.0f}"


def limit(value: float) -> str:
    return f"{value / 1e9:.2f}" if value else NONE


WHO = {
    "contender": Column("contender", str),
    "batch": Column("batch", str, "sequences that are decoded together"),
    "state": Column(
        "state",
        str,
        "*cold*: the first prompts after a start; *warm*: other prompts after those, in the same process; *prefill*: a "
        "step is a prefill of so many prompts x tokens"
    ),
    "limit_bytes": Column(
        "limit, GB", limit, "of memory, enforced by the kernel on all processes of the contender; –: none"
    ),
}
SPEED = WHO | {
    "first_s": Column("first token, ms", ms, "from handing in the prompts to the first token: the prefill; median"),
    "step_p50_s": Column("a step, ms: p50", ms, "a decode step, one token for each sequence: median"),
    "step_p99_s": Column("p99", ms, "99 of 100 steps took no longer"),
    "rate": Column("tokens/s", lambda value: str(Interval(**value)), "of all sequences in the steps (95 % interval)"),
    "speedup": Column(
        "ours is faster", lambda value: f"{Interval(**value)}×", "time of the same steps over ExpertFlow's, paired"
    ),
    "identical": Column("identical", share, "tokens equal to the reference's (see above)"),
    "pss_peak_bytes": Column(
        "PSS peak, MB", mb, "most memory of all processes at a time, shared pages counted once; page cache not counted"
    ),
    "group_peak_bytes": Column(
        "charged, MB",
        lambda value: mb(value) if value else NONE,
        "most that the kernel charged to the limit, page cache counted",
    ),
    "ready_s": Column("ready after, s", lambda value: f"{value:.0f}", "from the start to being ready for prompts"),
    "runs": Column("repeats", str),
    "steps": Column("steps", str, "decode steps in all repeats"),
    "threads": Column(
        "threads",
        lambda value: f"{value:.0f}",
        "the fastest count of a few steps, or its own choice",
    ),
    "failure": Column("failure", str),
}
INSIDE = WHO | {
    "expert_share": Column("experts held", share, "of the experts' bytes, what the slots hold"),
    "hit_ratio": Column("hits", share, "experts that were in their slot when their layer asked for them"),
    "forecast_precision": Column("forecast precision", share, "experts brought in ahead that were then used"),
    "forecast_recall": Column("recall", share, "experts brought in that had been predicted"),
    "bytes_per_token": Column(
        "MB a token",
        mb,
        "read for each generated token, prefill included, and when *cold* what is still to be filled after the start",
    ),
    "wasted_bytes_per_token": Column("wasted", mb, "of these, brought in ahead and evicted or passed unused"),
    "stall_share": Column("stalled", share, "of the time, compute waiting for experts"),
    "busy_compute": Column("busy: compute", share, "of the time, each stage at work"),
    "busy_loader": Column("loader", share),
    "busy_predictor": Column("predictor", share),
    "busy_scheduler": Column("scheduler", share),
}


Row = dict[str, Any]


def markdown(rows: Sequence[Row], columns: Mapping[str, Column] = SPEED) -> str:
    """Return a table with those of the columns that any row has."""
    shown = _shown(rows, columns)
    lines = [[column.title for column in shown.values()], ["---"] * len(shown)]
    lines += [[_cell(row, name, column) for name, column in shown.items()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def legend(rows: Sequence[Row]) -> str:
    """Explain the columns of both tables, a line each."""
    shown = _shown(rows, SPEED | INSIDE)
    return "".join(f"- **{column.title}**: {column.meaning}\n" for column in shown.values() if column.meaning)


def rows_with_inside(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that know what happens inside."""
    return [row for row in rows if any(name in row for name in INSIDE.keys() - WHO.keys())]


def _shown(rows: Sequence[Row], columns: Mapping[str, Column]) -> dict[str, Column]:
    return {name: column for name, column in columns.items() if any(_cell(row, name, column) != NONE for row in rows)}


def _cell(row: Row, name: str, column: Column) -> str:
    value = row.get(name)
    return NONE if value is None else column.text(value)


def write(
    rows: Sequence[Row], cells: Sequence[Cell], file: Path, title: str, notes: Sequence[str], picture: bool = True
) -> None:
    """Write the JSON `file`, with the cells that rows were made of; page and picture have its name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {"cpu": cpu_kind(), "rows": list(rows), "cells": msgspec.to_builtins(list(cells))}
    file.write_text(json.dumps(kept, indent=None) + "\n")
    drawn = file.with_suffix(".png")
    if picture:
        draw_comparison(rows, drawn)
    shown = [f"![{title}]({drawn.name})\n"] if picture and drawn.exists() else []
    file.with_suffix(".md").write_text(
        "\n".join([f"# {title}\n", *(f"{note}\n" for note in notes), *_body(rows, shown)])
    )


def _body(rows: Sequence[Row], pictures: Sequence[str]) -> list[str]:
    inside = rows_with_inside(rows)
    parts = ["## How fast, how large, how exact\n", markdown(rows), *pictures]
    parts += ["## Inside ExpertFlow\n", markdown(inside, INSIDE)] if inside else []
    return [*parts, "## Columns\n", legend(rows)]


def read_cells(file: Path) -> list[Cell]:
    """Read the cells of an earlier run; none if there is no such file."""
    return msgspec.convert(json.loads(file.read_text())["cells"], list[Cell]) if file.exists() else []
