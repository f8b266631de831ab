"""Compare how fast slots fill with 4-bit experts by the order of tensors in the files, and by what one read brings.

Model R in 4 bits, packed. *Side by side*: as `expertflow quantize` writes; *by name*: the same tensors in the order of
their names, as most tools write. *One by one*: a read for each part of a slot's tensor; *joined*: as the loader reads.
*Dequantised*: into slots of bfloat16. *Neighbours*: plain direct reads of so many experts that follow each other, the
most that joining their reads could give. All take turns in random order within a round; medians over rounds, ratios
within a round.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import statistics
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.loader.transfer import expert_sources
from expertflow.workers.packed.choice import ExpertsIn
from expertflow.workers.surveyor.surveyor import survey_checkpoint

from ..contenders.small import folder_by_name, quantised_folder
from ..models import model_r
from ..report import show_table
from .fills import Spent, Stopwatch, fill_slots, touched_memory

BITS = 4
IN_FLIGHT = 4
SIDE_BY_SIDE, BY_NAME, JOINED, ONE_BY_ONE = "side by side", "by name", "joined", "one by one"
DEQUANTISED = "side by side, dequantised"
FASTEST = f"{SIDE_BY_SIDE}, {JOINED}"


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and show; return one row a contender."""
    copies = {SIDE_BY_SIDE: quantised_folder(model_r(), BITS), BY_NAME: folder_by_name(model_r(), BITS)}
    surveys = {name: _survey(folder, "packed") for name, folder in copies.items()}
    surveys[DEQUANTISED] = _survey(copies[SIDE_BY_SIDE], "dequantised")
    rows = measure(surveys, arguments)
    show_table("experts in 4 bits that fill slots, to the first row in the same round", [_shown(row) for row in rows])
    return rows


def _survey(folder: Path, experts_in: ExpertsIn) -> Survey:
    return survey_checkpoint(str(folder), experts_in=experts_in).lay_out(1, "disk")


def measure(surveys: dict[str, Survey], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row a contender; the first round brings memory and code in, and does not count."""
    rng = random.Random(0)
    survey = surveys[SIDE_BY_SIDE]
    memory = touched_memory(max(IN_FLIGHT, *arguments.neighbours) * IN_FLIGHT * survey.stride_bytes)
    rounds: list[dict[str, Spent]] = []
    for _ in range(arguments.rounds + 1):
        experts = [divmod(rng.randrange(survey.expert_count), survey.experts) for _ in range(arguments.experts)]
        turns: dict[str, Callable[[], Spent]] = {
            f"{order}, {how}": partial(filled, surveys[order], how, experts, memory, arguments.readers)
            for order in (SIDE_BY_SIDE, BY_NAME)
            for how in (JOINED, ONE_BY_ONE)
        }
        turns[DEQUANTISED] = partial(filled, surveys[DEQUANTISED], JOINED, experts, memory, arguments.readers)
        turns |= {
            f"plain, {count} neighbours": partial(plain, survey, count, arguments.experts, memory, arguments.readers)
            for count in arguments.neighbours
        }
        rounds.append({name: turns[name]() for name in rng.sample(list(turns), len(turns))})
    names = sorted(rounds[0], key=lambda name: (name != FASTEST, name))
    return [_row(name, rounds[1:], survey.expert_bytes * arguments.experts) for name in names]


def filled(survey: Survey, how: str, experts: list[tuple[int, int]], memory: np.ndarray, readers: int) -> Spent:
    """Fill slots with these experts (layer, expert) through a real transfer engine."""
    if how == JOINED:
        return fill_slots(survey, experts, memory, readers, IN_FLIGHT)
    with mock.patch.object(expert_sources, "join_spans", lambda spans: [[span] for span in spans]):
        return fill_slots(survey, experts, memory, readers, IN_FLIGHT)


def plain(survey: Survey, count: int, experts: int, memory: np.ndarray, threads: int) -> Spent:
    """Read `experts` experts, so many neighbours at once, from random places, into memory that nobody computes with."""
    size = count * survey.expert_bytes
    descriptors = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in survey.files]
    places: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    rng = random.Random(count)
    for _ in range(experts // count):
        descriptor = rng.choice(descriptors)
        last = max(os.fstat(descriptor).st_size - size, 0) // 4096
        places.put((descriptor, rng.randrange(last + 1) * 4096))
    rooms = [memory[size * n :][:size] for n in range(threads)]

    def work(room: np.ndarray) -> None:
        while True:
            try:
                descriptor, offset = places.get_nowait()
            except queue.Empty:
                return
            os.preadv(descriptor, [room.data], offset)

    workers = [threading.Thread(target=work, args=(room,)) for room in rooms]
    watch = Stopwatch()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    spent = watch.read()
    for descriptor in descriptors:
        os.close(descriptor)
    return spent


def _row(name: str, rounds: list[dict[str, Spent]], count_bytes: int) -> dict[str, Any]:
    ratios = sorted(spent[FASTEST].wall_s / spent[name].wall_s for spent in rounds)
    return {
        "contender": name,
        "bytes_per_s": count_bytes / statistics.median(spent[name].wall_s for spent in rounds),
        "cpu_ms_per_mb": 1e9 * statistics.median(spent[name].cpu_s for spent in rounds) / count_bytes,
        "to_first": statistics.median(ratios),
        "quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
        "rounds": [spent._asdict() for spent in (own[name] for own in rounds)],
    }


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "experts": row["contender"],
        "GB/s": f"{row['bytes_per_s'] / 1e9:.2f}",
        "CPU ms/MB": f"{row['cpu_ms_per_mb']:.3f}",
        "rate, to the first": f"{row['to_first']:.2f}",
        "quartiles": " to ".join(f"{each:.2f}" for each in row["quartiles"]),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--experts", type=int, default=192, help="filled by each contender in each round")
    parser.add_argument("--neighbours", type=int, nargs="+", default=[1, 2, 4], help="experts that plain reads bring")
    parser.add_argument("--readers", type=int, default=2, help="threads of the transfer engine, and of plain reads")
    parser.add_argument("--rounds", type=int, default=15)
