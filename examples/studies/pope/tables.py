"""Tables of the study in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ..resumable import Row
from ..scoring.pope import RULES

_FIGURES = ("accuracy", "precision", "recall", "f1", "yes_share")


def show_results(rows: list[Row], console: Console) -> None:
    """Print the quality of whole and control cells, then the speed of all engine cells."""
    quality = [row for row in rows if row["kind"] != "speed"]
    if quality:
        console.print(quality_table(quality))
    engines = [row for row in rows if row["kind"] != "control"]
    if engines:
        console.print(speed_table(engines))


def quality_table(rows: list[Row]) -> Table:
    """Return accuracy with its interval and the other figures, a line a file."""
    table = Table(*("model", "system", "experts", "file", *_FIGURES, "differ from resident"), title="answers")
    for row in rows:
        for name in (*RULES, "unseen pairs"):
            if name in row["quality"]:
                table.add_row(row["model"], row["system"], row["budget"], name, *_quality_cells(row, name))
    return table


def _quality_cells(row: Row, name: str) -> list[str]:
    figures, intervals = row["quality"][name]["original"], row["quality"][name]["intervals"]
    low, high = intervals["accuracy"]
    texts = [f"{figures[figure]:.3f}" for figure in _FIGURES]
    texts[0] += f" ({low:.3f}–{high:.3f})"
    return [*texts, str(row.get("differing_answers", "—"))]


def speed_table(rows: list[Row]) -> Table:
    """Return rates, times and loads, a line a cell."""
    names = ("tokens/s", "first token ms", "ms a token", "found", "MB a token", "accuracy", "differ")
    table = Table(*("model", "source", "experts", "batch", "system", *names), title="speed")
    for row in sorted(rows, key=lambda row: (row["model"], row["source"], row["budget"], row["batch"])):
        figures = row["figures"]
        table.add_row(
            *(row["model"], row["source"], row["budget"], str(row["batch"]), row["system"]),
            f"{figures['tokens_per_s']:.1f}",
            f"{figures['first_token_ms']:.1f}",
            f"{figures['token_ms']:.1f}",
            f"{figures['found_when_needed']:.3f}",
            f"{figures['loaded_mb_a_token']:.2f}",
            f"{row['quality']['all']['original']['accuracy']:.3f}",
            str(row.get("differing_answers", "—")),
        )
    return table
