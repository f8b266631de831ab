"""Draw the experiments: systems over memory and side by side, and policies by replay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from expertflow.runtime.replay.experiment import BOUNDS
from matplotlib.figure import Figure

from .style import LIGHT, OTHERS, OURS, STYLES, Row, draw_labelled, lines_by, make_panels, save

QUANTITIES = {"tokens_per_s": "tokens/s", "hit_ratio": "hit ratio"}
BESIDE = QUANTITIES | {"loads_a_token": "expert loads a token", "stall_share": "stall, share of the time"}


def draw_experiments(rows: Sequence[Row], folder: Path, more: Sequence[Row] = ()) -> None:
    """Draw slots.png (main systems over memory, also those of `more`), systems.png and ablation.png."""
    main = [row for row in [*rows, *more] if row["group"] == "main"]
    if len({row["slots"] for row in main}) > 1:
        _draw_over_slots(main, folder / "slots.png")
    if not rows:
        return
    cells = [(row["slots"], row["batch"]) for row in rows]
    slots, batch = max(dict.fromkeys(cells), key=cells.count)
    there = [row for row in rows if (row["slots"], row["batch"]) == (slots, batch)]
    where = f"{slots} of the experts in memory, batch {batch}"
    for name, ablation in (("systems.png", False), ("ablation.png", True)):
        if chosen := [row for row in there if (row["group"] == "ablation") == ablation]:
            _draw_beside(chosen, folder / name, where)


def _draw_over_slots(rows: Sequence[Row], file: Path) -> None:
    batches = sorted({row["batch"] for row in rows})
    figure, panels = make_panels(len(QUANTITIES) * len(batches))
    cells = ((batch, *quantity) for batch in batches for quantity in QUANTITIES.items())
    for panel, (batch, column, label) in zip(panels, cells, strict=True):
        lines = lines_by([row for row in rows if row["batch"] == batch], "system", "expert_memory_mb", column)
        draw_labelled(panel, {name: line for name, line in lines.items() if len(line) > 1})
        panel.set(xlabel="expert slots, MB", ylabel=label)
        panel.set_title(f"batch {batch}", fontsize=10)
    save(figure, file)


def _draw_beside(rows: Sequence[Row], file: Path, title: str) -> None:
    """Draw a dot a system, the fastest on top."""
    ordered = sorted(rows, key=lambda row: row["tokens_per_s"])
    names = [row["system"] for row in ordered]
    figure = Figure(figsize=(10, 1.2 + 0.27 * len(names)), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(BESIDE), sharey=True)
    colours = [STYLES[OURS][0] if name in (OURS, "all parts") else OTHERS[0] for name in names]
    for panel, (column, label) in zip(panels, BESIDE.items(), strict=True):
        values = [row[column] for row in ordered]
        panel.scatter(values, names, c=colours, s=42, zorder=3, clip_on=False)
        panel.grid(axis="y", color=LIGHT)
        panel.set(xlabel=label, xlim=(0, 1.12 * max(values)))
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
    figure.suptitle(title, fontsize=10)
    save(figure, file)


def draw_replay(rows: Sequence[Row], file: Path) -> None:
    """Draw the hit ratio over shared slots, a panel a batch size; dashed: policies that know the future."""
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    figure, panels = make_panels(len(batches), 4.6)
    for panel, batch in zip(panels, batches, strict=True):
        chosen = [row for row in rows if row["batch"] == batch and row["sharing"] == "pool"]
        draw_labelled(panel, lines_by(chosen, "policy", "slots", "hit_ratio"), BOUNDS)
        panel.set(xlabel="slots a layer", ylabel="hit ratio", ylim=(0, 1))
        panel.set_title(f"batch {batch}", fontsize=10)
    save(figure, file)
