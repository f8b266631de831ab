"""Send 50,000 short requests through one engine: do memory, descriptors, threads and latency stay flat?

python -m expertflow.benchmarks.soak --requests 50000 --out docs/results/soak.json --picture docs/results/soak.png

`expertflow serve --http` runs the built-in model. Requests go by the blocking client, the asyncio client, bodies and
streams over HTTP, a window of each in turn, and some requests after each window one by one. Then every process is
sampled. Growth over the run is the slope by Theil and Sen of medians of four windows after a warm-up of 45 %, with an
interval of 95 %. Memory is judged by what a process shares with no other; PSS is shown, too. Latency and processor time
are compared only among windows of the same way. With --minutes it ends early, and says after how many requests.

The supervisor keeps a point a second for an hour; here it keeps a minute of them, so that its history is full and goes
round when the warm-up is over.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..chaos.engine_process import EngineProcess
from ..models import EXAMPLES
from ..report import show_table, write_json
from .load import Load
from .picture import draw_soak
from .samples import Moment, sample_processes
from .slopes import Slope, slope_of, warm_up

WAYS = 4
ALONE = 10
"""Requests after each window that are sent one by one."""
JUDGED, SHOWN = ("private_mib", "descriptors", "threads"), ("pss_mib",)
TIMES = ("alone_ms", "median_ms", "p95_ms", "cpu_ms")
TIMES_TOLERANCE = 0.05
"""Growth of times over the whole run, as a share of their level, that counts as flat."""
PROGRAM = ("expertflow.benchmarks.soak.short_history",)
WORDS = ("--model", str(EXAMPLES / "model"), "--expert-memory", "50%", "--units", "one", "--dtype", "float32")


def main() -> None:
    arguments = make_parser().parse_args()
    base = Path(tempfile.mkdtemp(prefix="efs", dir="/tmp"))
    try:
        moments, left = _soak(arguments, base)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    results = figures_of(moments, left)
    show_table(f"{moments[-1].requests:,} requests in {moments[-1].seconds:.0f} s", results["rows"], left=2)
    if arguments.picture:
        draw_soak(moments, arguments.picture)
    write_json(arguments.out, results)
    sys.exit(0 if results["flat"] and not left else 1)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--window", type=int, default=250, help="requests between two samples")
    parser.add_argument("--tokens", type=int, default=2, help="new tokens of each")
    parser.add_argument("--batch", type=int, default=64, help="rows of the engine")
    parser.add_argument("--minutes", type=float, default=60.0, help="time that it may take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--picture", type=Path, help="draw the samples")
    return parser


def _soak(arguments: argparse.Namespace, base: Path) -> tuple[list[Moment], list[str]]:
    """Return all moments, and what the engine left behind."""
    engine = EngineProcess([*WORDS, "--batch-size", str(arguments.batch)], base, base / "log", PROGRAM)
    try:
        load = Load(engine, arguments.tokens, arguments.seed)
        moments = list(_moments(engine, load, arguments))
        load.close()
    except BaseException:
        engine.kill_all()
        raise
    return moments, engine.stop()


def _moments(engine: EngineProcess, load: Load, arguments: argparse.Namespace) -> Iterator[Moment]:
    begun_s, requests = time.monotonic(), 0
    while requests < arguments.requests:
        latencies = load.window(arguments.window)
        alone = load.alone(ALONE)
        requests += arguments.window + ALONE
        seconds = time.monotonic() - begun_s
        median, p95 = map(float, np.quantile(latencies, [0.5, 0.95]))
        yield Moment(requests, seconds, sample_processes(engine.process.pid), median, p95, float(np.median(alone)))
        if seconds > 60 * arguments.minutes:
            return


def figures_of(moments: list[Moment], left: list[str]) -> dict[str, Any]:
    """Return a row for each series, whether all are flat, and the samples."""
    rows = [_row(process, series, slope) for process, series, slope in slopes_of(moments)]
    return {
        "requests": moments[-1].requests,
        "seconds": round(moments[-1].seconds, 1),
        "flat": all(row["verdict"] != "grows" for row in rows if row["series"] not in SHOWN),
        "left": left,
        "rows": rows,
        "moments": [_plain(moment) for moment in moments],
    }


def slopes_of(moments: list[Moment]) -> Iterator[tuple[str, str, Slope]]:
    """Yield process, series and slope of everything that must not grow."""
    span, requests = moments[-1].requests, [moment.requests for moment in moments]
    for name in moments[0].processes:
        for series in JUDGED + SHOWN:
            values = [getattr(moment.processes[name], series) for moment in moments]
            yield name, series, slope_of(requests, values, span)
    times = {series: [getattr(moment, series) for moment in moments] for series in TIMES if series != "cpu_ms"}
    for series, values in (times | {"cpu_ms": cpu_times(moments)}).items():
        yield "requests", series, slope_of(requests, _by_way(values), span, TIMES_TOLERANCE)


def cpu_times(moments: list[Moment]) -> list[float]:
    """Return the milliseconds of processor time of all processes for a request, in each window."""
    used = [sum(sample.cpu_s for sample in moment.processes.values()) for moment in moments]
    counts = np.diff([moment.requests for moment in moments])
    spent = [float(value) for value in 1000 * np.diff(used) / counts]
    return [*spent[:1], *spent]  # before the first window the processes started


def _by_way(values: list[float]) -> list[float]:
    """Return each value over the median of its way after the warm-up, in percent: ways take different times."""
    first = WAYS * (warm_up(len(values)) // WAYS)
    levels = [float(np.median(values[first + way :: WAYS])) for way in range(WAYS)]
    return [100 * value / levels[number % WAYS] for number, value in enumerate(values)]


def _row(process: str, series: str, slope: Slope) -> dict[str, Any]:
    verdict = "flat" if slope.is_certain else "no growth shown" if slope.is_flat else "grows"
    return {
        "process": process,
        "series": series if process != "requests" else f"{series}, % of the level of its way",
        "median": round(slope.middle, 2),
        "growth": round(slope.growth, 3),
        "interval": f"{slope.low:.3f} to {slope.high:.3f}",
        "verdict": verdict,
    }


def _plain(moment: Moment) -> dict[str, Any]:
    processes = {name: sample._asdict() for name, sample in moment.processes.items()}
    return moment._asdict() | {"processes": processes}


if __name__ == "__main__":
    main()
