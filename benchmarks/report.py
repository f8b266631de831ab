"""Show what a benchmark measured as a table, and write it as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .machine import cpu_kind


def show_table(title: str, rows: Sequence[Mapping[str, object]], width: int = 170, left: int = 1) -> None:
    """Print rows of one kind; their keys are the columns, the first `left` of which are words. Names the processor."""
    table = Table(title=title, caption=cpu_kind())
    for index, name in enumerate(rows[0]):
        table.add_column(name.replace("_", " "), justify="left" if index < left else "right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=width).print(table)


def write_json(file: Path | None, results: Any) -> None:
    """Write results, if a file was asked for, with the processor: once, or in every row if they are rows."""
    if file:
        cpu = {"cpu": cpu_kind()}
        named = cpu | results if isinstance(results, dict) else [cpu | row for row in results]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(named, indent=1) + "\n")
