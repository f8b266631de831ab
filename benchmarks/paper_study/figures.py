"""Compute what a cell shows, and ratios of two cells over the same blocks with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..intervals import Interval, median_interval
from .cells import Cell
from .measure import Block, Result
from .systems import EXPERTFLOW


def cell_of(result: Result) -> Cell:
    """Return the cell that gave a result."""
    return Cell(result["system"], result["model"], result["slots"], result["batch"], result["link"])


def rate_of(block: Block) -> float:
    """Return the tokens a second of a block."""
    return block["tokens"] / block["seconds"]


def decode_rate_of(block: Block) -> float:
    """Return the tokens a second of a block once all its prompts had been read."""
    return block["later_tokens"] / block["later_seconds"]


class Figures(NamedTuple):
    """What a cell shows; times are of all its blocks together."""

    tokens_per_s: Interval
    """Median over blocks with its 95 % interval, prompts included."""
    decoded_per_s: Interval
    """The same without the time to read prompts."""
    hit_ratio: float
    loads_a_token: float
    wasted_a_token: float
    step_of_bound: float
    """Elapsed time over the larger of computing and transferring: 1 is the best that both can be put side by side."""
    overlap: float
    """Share of the shorter of computing and transferring that ran beside the longer."""
    saved_memory: float
    """Share of the experts' memory that the slots do not take."""


def figures_of(result: Result) -> Figures:
    """Return the figures of a result."""
    tokens = sum(block["tokens"] for block in result["blocks"])
    compute_s, transfer_s, elapsed_s = result["compute_s"], result["transfer_s"], result["elapsed_s"]
    shorter = min(compute_s, transfer_s)
    hidden_s = compute_s + transfer_s - elapsed_s
    return Figures(
        tokens_per_s=median_interval([rate_of(block) for block in result["blocks"]]),
        decoded_per_s=median_interval([decode_rate_of(block) for block in result["blocks"]]),
        hit_ratio=result["hits"] / max(result["hits"] + result["misses"], 1),
        loads_a_token=result["loads"] / tokens,
        wasted_a_token=result["wasted"] / tokens,
        step_of_bound=elapsed_s / max(compute_s, transfer_s),
        overlap=min(max(hidden_s / shorter, 0.0), 1.0) if shorter else 0.0,
        saved_memory=1 - result["slots_bytes"] / result["experts_bytes"],
    )


def speed_up(mine: Result, theirs: Result, rate: Callable[[Block], float] = rate_of) -> Interval:
    """Return how many times as fast the same blocks ran: the median of the blocks' ratios with its 95 % interval.

    `rate`: of a block, with its prompts or without. Raises ValueError if the blocks are not the same.
    """
    pairs = list(zip(mine["blocks"], theirs["blocks"], strict=True))
    if any(a["workload"] != b["workload"] for a, b in pairs):
        raise ValueError("the two cells ran other workloads")
    return median_interval([rate(a) / rate(b) for a, b in pairs])


def share_equal(mine: Result, theirs: Result) -> float:
    """Return the share of the sequences that have the same tokens from the first to the last."""
    pairs = list(zip(mine["generated"], theirs["generated"], strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


class Pair(NamedTuple):
    """A result, and that of ExpertFlow in the same run."""

    expertflow: Result
    other: Result


def find_pair(runs: Sequence[Sequence[Result]], cell: Cell) -> Pair | None:
    """Return the result of a cell beside ExpertFlow's in the same run, None if it was not measured."""
    for run in runs:
        mine = next((result for result in run if result["system"] == EXPERTFLOW), None)
        theirs = next((result for result in run if cell_of(result) == cell), None)
        if mine and theirs:
            return Pair(mine, theirs)
    return None
