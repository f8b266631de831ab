"""Measure how long a text stands still when compute dies, with a spare process and without.

python -m expertflow.benchmarks.compute_death --repeats 5 --out compute-death.json

One sequence is generated; compute is killed with SIGKILL in the middle of it, several times in one engine. The pause is
the time between the last token before the kill and the first one after it. With a spare the next kill waits until the
spare has imported, that is, until its memory has not grown for three seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from expertflow import Client, Config, Supervisor
from expertflow.runtime.engine.process_memory import pss_bytes
from rich.console import Console
from rich.table import Table

from .machine import cpu_kind
from .report import write_json

EXAMPLE = Path(__file__).parents[1] / "examples" / "model"
TOKENS_BETWEEN, STEADY_S, PATIENCE_S = 20, 3.0, 120.0


@dataclass
class Pauses:
    """Hold the pauses of one way to run, in seconds, in the order of the kills."""

    spare: bool
    usual_s: float
    """Between two tokens, in the median."""
    pauses_s: list[float]
    spare_bytes: int = 0
    """Memory of the waiting process, shared pages by their share."""


def measure(folder: str, spare: bool, repeats: int) -> Pauses:
    config = Config.load(model=folder, spare_compute=spare, restart_limit=10**6)
    with Supervisor(config) as engine, Client(engine.address) as client:
        spare_bytes, pauses, usual = 0, [], []
        for _ in range(repeats):
            if spare:
                spare_bytes = await_spare(engine)
            gaps = gaps_around_kill(engine, client)
            pauses.append(round(max(gaps), 3))
            usual += [gap for gap in gaps if gap != max(gaps)]
    return Pauses(spare, round(statistics.median(usual), 4), pauses, spare_bytes)


def gaps_around_kill(engine: Supervisor, client: Client) -> list[float]:
    """Seconds between the tokens of one text, in the middle of which compute was killed."""
    batch = client.submit([[3, 5, 7]], max_new_tokens=2 * TOKENS_BETWEEN, eos_ids=[])
    gaps: list[float] = []
    last = 0.0
    for number, now in enumerate(times(batch)):
        gaps += [now - last] if last else []
        last = now
        if number == TOKENS_BETWEEN:
            engine.kill("compute")
    return gaps


def times(batch: object) -> Iterator[float]:
    for _ in batch:  # pyright: ignore[reportGeneralTypeIssues]
        yield time.monotonic()


def await_spare(engine: Supervisor) -> int:
    """Until it has imported. Return its memory."""
    deadline, steady_since, most = time.monotonic() + PATIENCE_S, time.monotonic(), 0
    while time.monotonic() - steady_since < STEADY_S or not most:
        if time.monotonic() > deadline:
            raise TimeoutError("there is no spare: is memory short?")
        now_bytes = spare_bytes(engine)
        if now_bytes > most * 1.01:
            most, steady_since = now_bytes, time.monotonic()
        time.sleep(0.5)
    return most


def spare_bytes(engine: Supervisor) -> int:
    """Return the memory of the process that is no stage; a snapshot tells that of some seconds ago."""
    stages = {stats.pid for stats in engine.snapshot().stages.values()}
    others = [child.pid for child in psutil.Process().children() if child.pid not in stages]
    return max(map(pss_bytes, others), default=0)


def show(rows: list[Pauses]) -> None:
    title = "a text stands still after the death of compute: seconds (median, least–most)"
    table = Table(title=title, caption=cpu_kind())
    for column in ("spare", "kills", "pause", "usual gap", "memory of the spare"):
        table.add_column(column, justify="right")
    for row in rows:
        pause = f"{statistics.median(row.pauses_s):.2f} ({min(row.pauses_s):.2f}–{max(row.pauses_s):.2f})"
        memory = f"{row.spare_bytes / 1e6:.0f} MB" if row.spare else ""
        table.add_row("yes" if row.spare else "no", str(len(row.pauses_s)), pause, f"{row.usual_s:.3f}", memory)
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(EXAMPLE), help="folder or hub id; the built-in model if not given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    rows = [measure(arguments.model, spare, arguments.repeats) for spare in (False, True)]
    show(rows)
    write_json(arguments.out, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
