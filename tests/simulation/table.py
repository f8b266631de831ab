"""The table of planted faults: by which check each is caught, and after how many histories."""

from __future__ import annotations

from expertflow.tests.simulation.clock import simulated
from expertflow.tests.simulation.history import Outcome, run_seed
from expertflow.tests.simulation.mutants import MUTANTS, Mutant, planted

CHECKS = {
    "I3": "a slot is torn or overwritten while it is read",
    "I4": "a request ends twice, wrongly, or with other tokens",
    "I6": "a process is left",
    "R1": "a slot has two owners",
    "R10": "the watchdog ends a stage that does not hang",
    "crash": "a stage ends with an error of its own",
    "epochs": "something of a dead process is acted upon",
    "leak": "a slot, row, unit or request is left at rest",
    "liveness": "something does not end",
    "predictor": "a prediction is made too early or too late",
    "units": "scheduler and compute disagree about a unit",
    "restarts": "the engine gives up too early or not at all",
}


def search(mutant: Mutant, first: int, most: int) -> tuple[int, Outcome | None]:
    """Return after how many histories from seed `first` on a mutant was caught, and how; None: not in `most`."""
    with planted(mutant):
        for count in range(1, most + 1):
            outcome = run_seed(first + count - 1)
            if outcome.broken:
                return count, outcome
    return most, None


def mutant_table(first: int, most: int) -> tuple[str, bool]:
    """Return the table in Markdown, and whether a mutant was not caught."""
    lines = ["| core | planted fault | caught by | histories |", "| --- | --- | --- | --- |"]
    missed = False
    with simulated():
        for mutant in MUTANTS:
            count, outcome = search(mutant, first, most)
            missed |= outcome is None
            caught = "**not caught**" if outcome is None else outcome.check
            lines.append(f"| {mutant.core} | {mutant.fault} | {caught} | {count} |")
    return "\n".join(lines) + "\n", missed
