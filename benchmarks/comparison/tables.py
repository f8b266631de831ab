"""Rows of a comparison as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..intervals import Interval

Row = dict[str, Any]
NONE = "–"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _mb(value: float) -> str:
    return f"{value / 1e6:.0f}"


def _ms(value: float) -> str:
    return f"{1e3 * value:.0f}"


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "contender": ("contender", str),
    "batch": ("batch", str),
    "limit_bytes": ("limit, GB", lambda value: f"{value / 1e9:.2f}" if value else "none"),
    "first_s": ("first token, ms", _ms),
    "step_p50_s": ("a step, ms: p50", _ms),
    "step_p99_s": ("p99", _ms),
    "tokens_per_s": ("tokens/s", lambda value: f"{value:.2f}"),
    "speedup": ("ours is faster", lambda value: f"{Interval(**value)}×"),
    "identical": ("identical", _share),
    "hit_ratio": ("hits", _share),
    "forecast_precision": ("forecast precision", _share),
    "forecast_recall": ("recall", _share),
    "bytes_per_token": ("MB a token", _mb),
    "wasted_bytes_per_token": ("wasted", _mb),
    "stall_share": ("stalled", _share),
    "busy_compute": ("busy: compute", _share),
    "busy_loader": ("loader", _share),
    "busy_predictor": ("predictor", _share),
    "busy_scheduler": ("scheduler", _share),
    "ready_s": ("ready after, s", lambda value: f"{value:.0f}"),
    "pss_peak_bytes": ("PSS peak, MB", _mb),
    "group_peak_bytes": ("charged, MB", lambda value: _mb(value) if value else NONE),
    "steps": ("steps", str),
    "threads": ("threads", lambda value: f"{value:.0f}"),
    "failure": ("failure", str),
}


def markdown(rows: Sequence[Row]) -> str:
    """A table with the columns that any row has."""
    columns = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    lines = [[COLUMNS[name][0] for name in columns], ["---"] * len(columns)]
    lines += [[_cell(row, name) for name in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(row: Row, name: str) -> str:
    value = row.get(name)
    return NONE if value is None else COLUMNS[name][1](value)


def draw(rows: Sequence[Row], file: Path, title: str) -> None:
    """Tokens a second, a bar a row, on a logarithmic scale."""
    from matplotlib.figure import Figure

    done = [row for row in rows if "tokens_per_s" in row][::-1]
    if not done:
        return
    figure = Figure(figsize=(9, 1 + 0.35 * len(done)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{row['contender']}, batch {row['batch']}, {_cell(row, 'limit_bytes')}" for row in done]
    colours = ["tab:orange" if row["contender"].startswith("ExpertFlow") else "tab:gray" for row in done]
    axes.barh(labels, [row["tokens_per_s"] for row in done], color=colours)
    axes.set(xscale="log", xlabel="tokens/s", title=title)
    figure.savefig(file, dpi=110)
