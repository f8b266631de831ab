"""Draw tokens a second over memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from .style import OTHERS, OURS, STYLES, Row, columns, lines_by, make_logarithmic, make_panels, save, share_legend

MODEL_R_GB = 3.3
LIMIT = "memory limit in GB, page cache counted (hollow: no limit, peak of all processes)"
PEAK = "peak memory of all processes, GB"


def draw_comparison(rows: Sequence[Row], file: Path) -> None:
    """Draw tokens a second over memory: a panel a batch size and a line a program, or a line a batch size if alone."""
    done = [row for row in rows if "tokens_per_s" in row]
    if not done:
        return
    if len({family_of(row["contender"]) for row in done}) > 1:
        _draw_programs(rows, file)
    else:
        _draw_budgets(done, file)


def draw_tokens_per_second(limited: Sequence[Row], resident: Sequence[Row], file: Path) -> None:
    """Draw the chart of the README: model R under memory limits, and where llama.cpp holds it whole."""
    whole = [row for row in resident if row["contender"].startswith("llama.cpp") and not row["limit_bytes"]]
    _draw_programs([*limited, *whole], file)


def family_of(contender: str) -> str:
    """Return the program that a contender is of, without its options."""
    return next((name for name in STYLES if contender.lower().startswith(name.lower())), contender)


def _draw_programs(rows: Sequence[Row], file: Path) -> None:
    batches = sorted({row["batch"] for row in rows})
    figure, panels = make_panels(len(batches))
    for panel, batch in zip(panels, batches, strict=True):
        chosen = [row for row in rows if row["batch"] == batch]
        for name in STYLES:
            _draw_program(panel, name, [row for row in chosen if family_of(row["contender"]) == name])
        _mark_killed(panel, [row for row in chosen if row.get("failure", "").startswith("killed")])
        panel.set_title(f"batch {batch}", fontsize=10)
        make_logarithmic(panel)
    panels[0].set_ylabel("tokens/s")
    _mark_model(panels)
    killed = any(row.get("failure", "").startswith("killed") for row in rows)
    share_legend(figure, panels, below=4 if killed else 1.5)
    figure.supxlabel(LIMIT, fontsize=9)
    save(figure, file)


def _draw_program(panel: Axes, name: str, rows: Sequence[Row]) -> None:
    """Join the points under a limit; a program that ran without one has hollow points, joined by a dotted line."""
    colour, marker = STYLES[name]
    done = [row for row in rows if "tokens_per_s" in row]
    limited = sorted((row["limit_bytes"] / 1e9, row["tokens_per_s"]) for row in done if row["limit_bytes"])
    free = sorted((row["pss_peak_bytes"] / 1e9, row["tokens_per_s"]) for row in done if not row["limit_bytes"])
    if not done:
        return
    width = 2.6 if name == OURS else 1.8
    panel.plot(*columns(limited), marker=marker, color=colour, linewidth=width, markersize=6, label=name)
    panel.plot(*columns(free), marker, color=colour, markerfacecolor="white", markeredgewidth=1.6, markersize=6)
    if name in (OURS, "llama.cpp") and limited:
        joined = [limited[-1], *(point for point in free if point[0] > limited[-1][0])]
        panel.plot(*columns(joined), ":", color=colour, linewidth=width, zorder=1)


def _mark_killed(panel: Axes, rows: Sequence[Row]) -> None:
    if rows:
        names = dict.fromkeys(family_of(row["contender"]) for row in rows)
        panel.plot([rows[0]["limit_bytes"] / 1e9], [0.12], "x", color="black", transform=panel.get_xaxis_transform())
        text = "out of memory:\n" + ",\n".join(names)
        at = (rows[0]["limit_bytes"] / 1e9, 0.12)
        panel.annotate(text, at, (8, 0), panel.get_xaxis_transform(), "offset points", fontsize=8, va="center")


def _mark_model(panels: Sequence[Axes]) -> None:
    for panel in panels:
        panel.axvline(MODEL_R_GB, color="#999999", linewidth=1, linestyle="--", zorder=0)
        at, text = panel.get_xaxis_transform(), f"weights,\n{MODEL_R_GB} GB"
        panel.annotate(text, (MODEL_R_GB, 0.02), (3, 0), at, "offset points", fontsize=8, color="#777777")


def _draw_budgets(rows: Sequence[Row], file: Path) -> None:
    states = list(dict.fromkeys(row.get("state", "") for row in rows))
    figure, panels = make_panels(len(states))
    for panel, state in zip(panels, states, strict=True):
        chosen = [row for row in rows if row.get("state", "") == state]
        lines = lines_by(chosen, "batch", "pss_peak_bytes", "tokens_per_s", 1e9)
        for batch, colour in zip(sorted(lines, reverse=True), (STYLES[OURS][0], *OTHERS), strict=False):
            panel.plot(*columns(lines[batch]), "o-", color=colour, linewidth=2.2, label=f"batch {batch}")
        for row in (row for row in chosen if row["batch"] == max(lines)):
            share, at = row["contender"].removeprefix(OURS).strip(), (row["pss_peak_bytes"] / 1e9, row["tokens_per_s"])
            panel.annotate(share, at, (0, 7), textcoords="offset points", fontsize=8, ha="center")
        panel.set_title(state, fontsize=10)
        panel.set_xlabel(f"{PEAK}\n(labels: experts held)")
        make_logarithmic(panel)
    panels[0].set_ylabel("tokens/s")
    share_legend(figure, panels)
    save(figure, file)
