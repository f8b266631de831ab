"""Compare the loader's disk rate with the best of plain direct reads of the same files, with the CPU that a MB costs.

Plain: `preadv` past the page cache of random stretches, 1 to 16 MB, 1 to 8 in flight. Ours: the transfer engine filling
slots with random experts, alone in this process, into the same memory (a disk fills a few MB that stay in the CPU's
cache faster, but slots are larger); and the loader of a running engine filling all slots at its start.
All take turns within a round; medians over rounds, ratios within a round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import queue
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from expertflow import Client, Config, Supervisor
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.surveyor.surveyor import survey_checkpoint

from ..models import folder_of
from ..report import show_table
from .fills import MB, Stopwatch, fill_slots, touched_memory

MODELS = ("r", "widened")


@dataclass
class Reading:
    """Hold one contender in one round. `cpu_s`: of all threads that read."""

    contender: str
    read_bytes: int
    wall_s: float
    cpu_s: float

    @property
    def rate(self) -> float:
        return self.read_bytes / self.wall_s


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and show; return one row a model and contender."""
    rows = [row for model in arguments.models for row in measure(model, arguments)]
    show(rows)
    return rows


def measure(model: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row a contender."""
    survey = survey_checkpoint(str(folder_of(model)))
    rng = random.Random(0)
    memory = touched_memory(arguments.megabytes * MB)
    rounds = [one_round(survey, memory, arguments, number, rng) for number in range(arguments.rounds)]
    return [_row(model, name, rounds) for name in rounds[0]]


def one_round(
    survey: Survey, memory: np.ndarray, arguments: argparse.Namespace, number: int, rng: random.Random
) -> dict[str, Reading]:
    """Run every contender once, in random order; the engine in the first rounds only, as its start takes long."""
    turns: list[Callable[[], Reading]] = [
        partial(plain, survey, size, flight, memory, rng) for size in arguments.sizes for flight in arguments.flights
    ]
    turns += [partial(ours, survey, readers, memory, rng) for readers in arguments.readers]
    if number < arguments.engine_rounds:
        turns.append(partial(in_process, survey))
    rng.shuffle(turns)
    return {spent.contender: spent for spent in [turn() for turn in turns]}


def plain(survey: Survey, size_mb: int, flight: int, memory: np.ndarray, rng: random.Random) -> Reading:
    """Read with `flight` threads that do nothing else, as much as fits `memory`."""
    count_bytes = memory.size
    descriptors = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in survey.files]
    sizes = [os.fstat(descriptor).st_size for descriptor in descriptors]
    size = size_mb * MB
    places: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    for file in rng.choices(range(len(sizes)), sizes, k=count_bytes // size):
        places.put((descriptors[file], rng.randrange(max((sizes[file] - size) // 4096, 1)) * 4096))

    def work() -> None:
        while not places.empty():
            try:
                descriptor, offset = places.get_nowait()
                os.preadv(descriptor, [next(memories)[:size].data], offset)
            except queue.Empty:
                return

    memories = itertools.cycle(memory[: memory.size // size * size].reshape(-1, size))
    threads = [threading.Thread(target=work) for _ in range(flight)]
    watch = Stopwatch()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = watch.read()
    for descriptor in descriptors:
        os.close(descriptor)
    return Reading(f"plain {size_mb} MB x {flight}", count_bytes // size * size, *spent)


def ours(survey: Survey, readers: int, memory: np.ndarray, rng: random.Random) -> Reading:
    """Fill slots with random experts through the transfer engine, as many on the way as the ledger allows."""
    survey = survey.lay_out(1, "disk")
    count = memory.size // survey.stride_bytes
    experts = [divmod(rng.randrange(survey.expert_count), survey.experts) for _ in range(count)]
    spent = fill_slots(survey, experts, memory, readers, in_flight=2 * readers)
    return Reading(f"transfers, {readers} readers", count * survey.expert_bytes, *spent)


def in_process(survey: Survey) -> Reading:
    """Time the loader of an engine with slots for all experts, as it fills them at its start."""
    with tempfile.TemporaryDirectory() as folder:
        timeline = Path(folder, "timeline.json")
        config = Config.load("cpu-disk", model=survey.folder, expert_memory="100%", timeline=str(timeline))
        with Supervisor(config) as engine, Client(engine.address) as client:
            while _loads(client) < survey.expert_count:
                time.sleep(0.25)
            cpu_s = _other_threads_cpu_s(client.stats().stages["loader"].pid)
        spans = [event for event in json.loads(timeline.read_text()) if event["ph"] == "X" and event["name"] == "load"]
    wall_s = (max(span["ts"] + span["dur"] for span in spans) - min(span["ts"] for span in spans)) / 1e6
    return Reading("loader process", survey.expert_count * survey.expert_bytes, wall_s, cpu_s)


def _loads(client: Client) -> float:
    """Return the loads of the loader, which may not have published anything yet."""
    stages = client.stats().stages
    return stages["loader"].counters.get("loads", 0) if "loader" in stages else 0


def _other_threads_cpu_s(pid: int) -> float:
    """Return the CPU of all threads of a process but the main one, which has imported and opened everything."""
    ticks = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        if int(task.name) != pid:
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _row(model: str, name: str, rounds: list[dict[str, Reading]]) -> dict[str, Any]:
    """Return a row; ratios are to the plain reads that are best by their median over all rounds, in the same round."""
    plains = [each for each in rounds[0] if each.startswith("plain")]
    best = max(plains, key=lambda each: statistics.median(spent[each].rate for spent in rounds))
    mine = [spent[name] for spent in rounds if name in spent]
    ratios = sorted(spent[name].rate / spent[best].rate for spent in rounds if name in spent)
    return {
        "model": model,
        "contender": name,
        "best_plain": best,
        "bytes_per_s": statistics.median(spent.rate for spent in mine),
        "cpu_ms_per_mb": statistics.median(1e3 * spent.cpu_s / spent.read_bytes * MB for spent in mine),
        "to_best_plain": statistics.median(ratios),
        "quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
        "rounds": [asdict(spent) for spent in mine],
    }


def show(rows: list[dict[str, Any]]) -> None:
    shown = [
        {
            "model": row["model"],
            "contender": row["contender"] + (" *" if row["contender"] == row["best_plain"] else ""),
            "GB/s": f"{row['bytes_per_s'] / 1e9:.2f}",
            "CPU ms/MB": f"{row['cpu_ms_per_mb']:.3f}",
            "to best plain": f"{row['to_best_plain']:.2f}",
            "quartiles": " to ".join(f"{each:.2f}" for each in row["quartiles"]),
        }
        for row in sorted(rows, key=lambda row: (row["model"], row["contender"]))
    ]
    show_table("disk rate, to the best of plain direct reads in the same round (*)", shown, left=2)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="MB of a plain read")
    parser.add_argument("--flights", type=int, nargs="+", default=[1, 2, 4, 8], help="plain reads in flight")
    parser.add_argument("--readers", type=int, nargs="+", default=[1, 2, 4], help="threads of the transfer engine")
    parser.add_argument("--megabytes", type=int, default=192, help="read by each contender in each round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--engine-rounds", type=int, default=3, help="rounds in which an engine is started as well")
