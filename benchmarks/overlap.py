"""Measure how much of the loading happens while compute computes: the widened model at 25 % from disk, by its timeline.

python -m expertflow.benchmarks.overlap                       run, compute the shares, draw docs/images/timeline.png
python -m expertflow.benchmarks.overlap --timeline FILE       only read a timeline that is there
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Spans = np.ndarray
"""float64 [spans, 2]: start and end in microseconds, sorted and disjoint."""


@dataclass
class Timeline:
    """Hold the spans that matter, from a trace in Chrome's format."""

    loads: Spans
    load_times: Spans
    computing: Spans
    steps: Spans


def read_timeline(file: Path) -> Timeline:
    """Read a timeline; computing is every prefill and decode less the stalls inside."""
    events = [event for event in json.loads(file.read_text()) if event["ph"] == "X"]
    each = _spans(events, "load")
    steps = merge(np.concatenate([_spans(events, "prefill"), _spans(events, "decode")]))
    return Timeline(merge(each), each, subtract(steps, merge(_spans(events, "stall"))), steps)


def _spans(events: list[dict[str, Any]], name: str) -> Spans:
    found = [(event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == name]
    return np.array(sorted(found), dtype=float).reshape(-1, 2)


def merge(spans: Spans) -> Spans:
    """Return the same time, as disjoint spans."""
    merged: list[list[float]] = []
    for start, end in sorted(spans.tolist()):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, dtype=float).reshape(-1, 2)


def subtract(spans: Spans, holes: Spans) -> Spans:
    """Return what is left of disjoint spans without disjoint holes."""
    left: list[tuple[float, float]] = []
    for start, end in spans.tolist():
        inside = holes[(holes[:, 1] > start) & (holes[:, 0] < end)]
        for hole_start, hole_end in inside.tolist():
            if hole_start > start:
                left.append((start, hole_start))
            start = max(start, hole_end)
        if start < end:
            left.append((start, end))
    return np.array(left, dtype=float).reshape(-1, 2)


def shared(a: Spans, b: Spans) -> float:
    """Return the time in which both are going on; both disjoint."""
    return sum(
        max(0.0, min(e, f) - max(s, t)) for s, e in a.tolist() for t, f in b[(b[:, 1] > s) & (b[:, 0] < e)].tolist()
    )


def length(spans: Spans) -> float:
    return float((spans[:, 1] - spans[:, 0]).sum())


def load_share_under_compute(timeline: Timeline) -> float:
    """Return the share of loading time during which compute computes."""
    return shared(timeline.loads, timeline.computing) / length(timeline.loads)


def report(timeline: Timeline) -> str:
    """Say the shares in words."""
    load, compute = length(timeline.loads), length(timeline.computing)
    both = shared(timeline.loads, timeline.computing)
    return (
        f"{len(timeline.load_times)} loads, {load / 1e6:.2f} s with a load under way; "
        f"{compute / 1e6:.2f} s of computing\n"
        f"share of load time under compute: {both / load:.2f}\n"
        f"share of compute time under loads: {both / compute:.2f}\n"
        f"computing per load time (the most that the first share could be): {compute / load:.2f}"
    )


def draw(file: Path, timeline: Timeline, picture: Path, window_ms: float = 1500) -> None:
    """Draw the stages over a stretch of decoding, one row a stage."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    events = [event for event in json.loads(file.read_text()) if event["ph"] == "X"]
    middle = float(np.median(timeline.steps[:, 0]))
    figure, axes = pyplot.subplots(figsize=(11, 3.2), layout="constrained")
    _bars(axes, _spans(events, "forecast"), 3, "tab:purple", "forecast", middle)
    for lane in sorted({event["tid"] for event in events if event["name"] == "load"}):
        chosen = [event for event in events if event["name"] == "load" and event["tid"] == lane]
        _bars(axes, _spans(chosen, "load"), 2 + 0.18 * lane, "tab:orange", "load" if lane == 0 else "", middle, 0.15)
    _bars(axes, timeline.computing, 1, "tab:green", "compute", middle)
    _bars(axes, merge(_spans(events, "stall")), 0, "tab:red", "stall (compute waits)", middle)
    axes.set(
        xlim=(0, window_ms),
        xlabel="ms",
        yticks=[0.2, 1.2, 2.3, 3.2],
        yticklabels=["stall", "compute", "loads", "forecasts"],
    )
    axes.set_title(
        "widened model, 25 % of the experts, from disk, batch 8: "
        f"{100 * load_share_under_compute(timeline):.0f} % of load time under compute"
    )
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


def _bars(axes: Any, spans: Spans, y: float, color: str, label: str, start: float, height: float = 0.4) -> None:
    bars = [((a - start) / 1e3, (b - a) / 1e3) for a, b in spans.tolist()]
    axes.broken_barh(bars, (y, height), facecolors=color, label=label or None)


def run(file: Path, bits: int | None) -> None:
    """Run what is measured: 8 texts, 64 tokens each, greedy; with `bits` on a quantised copy, packed."""
    from expertflow import Client, Config, Supervisor

    from .contenders.small import quantised_folder
    from .models import held_out_prompts, widened

    model, experts_in = (quantised_folder(widened(), bits), "packed") if bits else (widened(), "auto")
    config = Config.load(
        "cpu-disk", model=model, experts_in=experts_in, expert_memory="25%", batch_size=8, timeline=str(file)
    )
    with Supervisor(config) as engine, Client(engine.address) as client:
        client.generate(held_out_prompts(8), max_new_tokens=64, eos_ids=[])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--timeline", type=Path, help="read this file instead of running")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="of a quantised copy, whose experts stay packed")
    parser.add_argument("--picture", type=Path, default=Path(__file__).parents[1] / "docs" / "images" / "timeline.png")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = arguments.timeline or Path(folder, "timeline.json")
        if not arguments.timeline:
            run(file, arguments.bits)
        timeline = read_timeline(file)
        print(report(timeline))  # noqa: T201 - a script's answer
        draw(file, timeline, arguments.picture)


if __name__ == "__main__":
    main()
