"""Compute the figures of one cell: a system with so many slots and so many sequences at a time."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TypedDict


class Figures(TypedDict):
    """Hold a row of the results. "A token" is a generated one; what prompts cost is in it."""

    system: str
    group: str
    slots: str
    """Share of all experts."""
    batch: int
    tokens_per_s: float
    """Median over blocks of sequences, prompts included."""
    slowest_block: float
    fastest_block: float
    hit_ratio: float
    """Share of the experts a layer needed that were there when it began."""
    activated_a_step: float
    """Distinct experts of all layers; a step is of one unit."""
    activated_a_token: float
    loads_a_token: float
    loaded_mb_a_token: float
    useful_a_token: float
    """Prefetches that were used, and that were not."""
    wasted_a_token: float
    accuracy: float | None
    """Accuracy of predictions, as the loader measured it last; None: nothing is predicted."""
    stall_share: float
    """Share of the time that compute waited for experts."""
    cpu_ms_a_token: float
    """CPU time of all stages, which a busy machine changes least."""
    way: str
    """Units, prediction and grouping in use when it ended."""
    expert_memory_mb: float
    """Memory of the slots."""
    pss_mb: float
    """Memory of all processes; the host tier's store of every expert is in it."""
    equal_tokens: float | None
    """Share of the sequences with the same tokens as the first system at this batch size had."""


@dataclass
class Measured:
    """Hold what came out of an engine, between two readings of its counters."""

    rates: list[float]
    """Tokens a second of each block."""
    elapsed_s: float
    grown: dict[str, float]
    """Growth of the counters; also cpu_s."""
    accuracy: float | None
    way: str
    slots: int
    slot_bytes: int
    pss_bytes: int
    generated: list[list[int]]
    """Token ids of each sequence."""


def figures_of(system: str, group: str, slots: str, batch: int, measured: Measured) -> Figures:
    """Compute figures per token and per step; `equal_tokens` is still open."""
    grown, tokens = measured.grown, sum(map(len, measured.generated))
    activated = grown["hits"] + grown["misses"]
    return Figures(
        system=system,
        group=group,
        slots=slots,
        batch=batch,
        tokens_per_s=round(statistics.median(measured.rates), 2),
        slowest_block=round(min(measured.rates), 2),
        fastest_block=round(max(measured.rates), 2),
        hit_ratio=round(grown["hits"] / max(activated, 1), 3),
        activated_a_step=round(activated / max(grown["steps"], 1), 1),
        activated_a_token=round(activated / tokens, 2),
        loads_a_token=round(grown["loads"] / tokens, 2),
        loaded_mb_a_token=round(grown["bytes"] / tokens / 1e6, 2),
        useful_a_token=round(grown["useful"] / tokens, 2),
        wasted_a_token=round(grown["wasted"] / tokens, 2),
        accuracy=measured.accuracy,
        stall_share=round(grown["stall_ns"] / 1e9 / measured.elapsed_s, 3),
        cpu_ms_a_token=round(1e3 * grown["cpu_s"] / tokens, 1),
        way=measured.way,
        expert_memory_mb=round(measured.slots * measured.slot_bytes / 1e6, 1),
        pss_mb=round(measured.pss_bytes / 1e6, 1),
        equal_tokens=None,
    )


def share_equal(mine: list[list[int]], reference: list[list[int]]) -> float:
    """Return the share of the sequences that are the same from the first to the last token."""
    if len(mine) != len(reference):
        raise ValueError(f"{len(mine)} sequences cannot be compared with {len(reference)}")
    return round(sum(a == b for a, b in zip(mine, reference, strict=True)) / len(reference), 3)
