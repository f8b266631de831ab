"""Table, assumptions and JSON of a simulation, and the numbers of replicas that a text names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.table import Table

from ....configs.sizes import format_size
from ....errors import UsageError
from ...monitor.tables import plain_table, share_text
from .machine import ReplicaMachine
from .simulator import SimulatedOutcome

MAX_REPLICAS = 10_000
ASSUMPTIONS = (
    "Requests are the trace's sequences, over and over; output tokens and their experts are those recorded.",
    "Every replica is the same machine. A step takes --step-ms, --token-ms for each of its tokens, and its loads over "
    "the link; of the loading time, --exposed is waited for. Prefetching by prediction is in --exposed alone.",
    "Prompts that wait and find a row are prefilled together, in a step of their own. No prefix is shared. There is no "
    "limit of KV memory.",
    "Slots are shared by all layers; the policy sees one layer at a time. States are published once a second.",
    "The gateway and the rule are the real code; they, and the front, take no time but --message-ms.",
    "A replica dies at random times, is missed a second later, and is back after --repair-s, with empty slots.",
)
"""Assumptions that the figures rest on; printed with them."""


def replica_counts(text: str) -> list[int]:
    """Return the numbers that a text names: 1,2,4 or FIRST..LAST, which steps by powers of ten.

    Raises UsageError for a text that names none, or more than `MAX_REPLICAS`.
    """
    first, dots, last = text.partition("..")
    try:
        counts = _powers(int(first), int(last)) if dots else [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or max(counts) > MAX_REPLICAS:
        remedy = f"Write for example 4, or 1,2,4, or 1..1000; at most {MAX_REPLICAS:,}"
        raise UsageError(f"'{text}' is no number of replicas", "--replicas", remedy)
    return counts


def outcome_table(outcomes: Sequence[SimulatedOutcome], machine: ReplicaMachine) -> Table:
    """Return a row for each simulation."""
    names = ("rule", "tokens/s", "found", "loaded/token", "waits", "first token", "whole", "busiest", "moved")
    table = plain_table("replicas", *names)
    for outcome in outcomes:
        table.add_row(
            f"{outcome.replicas:,}",
            outcome.rule,
            f"{outcome.tokens_per_s:,.1f}",
            f"{100 * outcome.hit_rate:.1f} %",
            format_size(outcome.loads_per_token * machine.expert_bytes),
            share_text(outcome.stall_share),
            _seconds(outcome.first_token_s),
            _seconds(outcome.total_s),
            f"{outcome.imbalance:.2f} ×",
            f"{outcome.moved:,}",
        )
    return table


LEGEND = {
    "found": "share of the experts in use that were in a slot when needed",
    "waits": "share of compute's time in which it waits for experts",
    "first token, whole": "seconds from acceptance, median and 95th percentile",
    "busiest": "requests of the busiest replica ÷ the mean",
    "moved": "requests that went on at another replica after a death",
}


def write_outcomes(file: Path, outcomes: Sequence[SimulatedOutcome], machine: ReplicaMachine) -> None:
    """Write all figures and the machine as JSON. Raises UsageError if the file cannot be written."""
    content = {"machine": machine, "assumptions": ASSUMPTIONS, "outcomes": outcomes}
    try:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", str(file), "Give another file for --json") from error


def _powers(first: int, last: int) -> list[int]:
    if first > last:
        raise ValueError
    counts = [first, *(10**power for power in range(1, 5) if first < 10**power < last), last]
    return list(dict.fromkeys(counts))


def _seconds(times_s: tuple[float, float]) -> str:
    return f"{times_s[0]:.2f} / {times_s[1]:.2f}"
