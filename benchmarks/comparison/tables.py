"""Rows of a comparison as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .columns import INSIDE, NONE, SPEED, WHO, Column, limit

Row = dict[str, Any]


def markdown(rows: Sequence[Row], columns: Mapping[str, Column] = SPEED) -> str:
    """A table with those of the columns that any row has."""
    shown = _shown(rows, columns)
    lines = [[column.title for column in shown.values()], ["---"] * len(shown)]
    lines += [[_cell(row, name, column) for name, column in shown.items()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def legend(rows: Sequence[Row]) -> str:
    """What the columns of both tables mean, a line each."""
    shown = _shown(rows, SPEED | INSIDE)
    return "".join(f"- **{column.title}**: {column.meaning}\n" for column in shown.values() if column.meaning)


def insiders(rows: Sequence[Row]) -> list[Row]:
    """Those that know what happens inside."""
    return [row for row in rows if any(name in row for name in INSIDE.keys() - WHO.keys())]


def _shown(rows: Sequence[Row], columns: Mapping[str, Column]) -> dict[str, Column]:
    return {name: column for name, column in columns.items() if any(_cell(row, name, column) != NONE for row in rows)}


def _cell(row: Row, name: str, column: Column) -> str:
    value = row.get(name)
    return NONE if value is None else column.text(value)


def draw(rows: Sequence[Row], file: Path, title: str) -> None:
    """Tokens a second, a bar a row, on a logarithmic scale."""
    from matplotlib.figure import Figure

    done = [row for row in rows if "tokens_per_s" in row][::-1]
    if not done:
        return
    figure = Figure(figsize=(9, 1 + 0.35 * len(done)), layout="constrained")
    axes = figure.subplots()
    colours = ["tab:orange" if row["contender"].startswith("ExpertFlow") else "tab:gray" for row in done]
    axes.barh([_label(row) for row in done], [row["tokens_per_s"] for row in done], color=colours)
    axes.set(xscale="log", xlabel="tokens/s", title=title)
    figure.savefig(file, dpi=110)


def _label(row: Row) -> str:
    parts = [row["contender"], f"batch {row['batch']}", row.get("state", "")]
    parts += [f"{limit(row['limit_bytes'])} GB"] if row["limit_bytes"] else []
    return ", ".join(filter(None, parts))
