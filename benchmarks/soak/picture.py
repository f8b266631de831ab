"""Draw what a soak run sampled: memory, descriptors and threads of every process, and latencies, over requests."""

from __future__ import annotations

from pathlib import Path

from ..plots.style import OTHERS, make_panels, make_plain, save
from .samples import Moment

PANELS = {"private_mib": "private memory, MiB", "descriptors": "descriptors", "threads": "threads"}


def draw_soak(moments: list[Moment], file: Path) -> None:
    """Draw four panels over the number of requests; all begin at 0."""
    figure, panels = make_panels(len(PANELS) + 1)
    requests = [moment.requests for moment in moments]
    for panel, (field, title) in zip(panels, PANELS.items(), strict=False):
        panel.set_title(title, fontsize=10)
        for colour, name in zip(OTHERS, moments[0].processes, strict=False):
            values = [getattr(moment.processes[name], field) for moment in moments]
            panel.plot(requests, values, color=colour, label=name)
    panels[-1].set_title("latency, ms: median, 95 % (dotted), one by one (grey)", fontsize=10)
    panels[-1].plot(requests, [moment.median_ms for moment in moments], "k-")
    panels[-1].plot(requests, [moment.p95_ms for moment in moments], "k:")
    panels[-1].plot(requests, [moment.alone_ms for moment in moments], color="0.6")
    for panel in panels:
        panel.set_ylim(bottom=0)
        make_plain(panel)
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper center", ncols=6, fontsize=9, frameon=False)
    figure.supxlabel("requests", fontsize=9)
    save(figure, file)
