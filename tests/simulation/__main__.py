"""Runs histories from the command line: `python -m expertflow.tests.simulation --help`."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from expertflow.tests.simulation.clock import simulated
from expertflow.tests.simulation.history import Outcome, replay, run_seed, shrink
from expertflow.tests.simulation.table import mutant_table

BLOCK = 200
"""Seeds that a process takes at a time."""


def main() -> int:
    """Return 1 if a history was broken."""
    parser = argparse.ArgumentParser(prog="python -m expertflow.tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run the history of this seed and print its script")
    parser.add_argument("--script", type=Path, help="replay the history of this file, as --seed prints it")
    parser.add_argument("--near", action="store_true", help="with --script: leave out what is not possible any more")
    parser.add_argument("--soak", type=int, metavar="N", help="run N histories in two processes")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed (0)")
    parser.add_argument("--mutants", type=int, metavar="N", help="search each mutant in up to N histories, as a table")
    words = parser.parse_args()
    if words.soak is not None:
        return soak(words.first, words.soak)
    if words.mutants is not None:
        return tell(*mutant_table(words.first, words.mutants))
    with simulated():
        outcome = played(words.seed or 0) if words.script is None else replay(words.script.read_text(), not words.near)
    return tell(outcome.script(), bool(outcome.broken))


def played(seed: int) -> Outcome:
    """Return the history of a seed; a broken one with as few faults as still break it."""
    outcome = run_seed(seed)
    return shrink(outcome) if outcome.broken else outcome


def soak(first: int, count: int) -> int:
    """Run seeds in two processes; print what was broken, the rate, and a script for the first broken seed."""
    began, events, broken = time.monotonic(), 0, dict[int, str]()
    blocks = [(seed, min(seed + BLOCK, first + count)) for seed in range(first, first + count, BLOCK)]
    with ProcessPoolExecutor(2) as pool:
        for (_, done), (block_events, block_broken) in zip(blocks, pool.map(run_block, blocks), strict=True):
            events += block_events
            broken |= block_broken
            if done % 10_000 == 0 or block_broken:
                rate = (done - first) / (time.monotonic() - began)
                sys.stdout.write(f"{done - first} histories, {rate:.0f} a second, broken: {broken or 'none'}\n")
                sys.stdout.flush()
    seconds = time.monotonic() - began
    sys.stdout.write(
        f"seeds {first} to {first + count - 1}: {count} histories of {events / count:.0f} events in {seconds:.0f} s, "
        f"{count / seconds:.0f} a second; broken: {broken or 'none'}\n"
    )
    for seed in list(broken)[:1]:
        sys.stdout.write(script_of(seed))
    return int(bool(broken))


def run_block(seeds: tuple[int, int]) -> tuple[int, dict[int, str]]:
    """Return the events of the histories of some seeds, and what was broken, by seed."""
    with simulated():
        outcomes = ((seed, run_seed(seed)) for seed in range(*seeds))
        counted = [(seed, len(outcome.log), outcome.broken) for seed, outcome in outcomes]
    return sum(count for _, count, _ in counted), {seed: broken for seed, _, broken in counted if broken}


def script_of(seed: int) -> str:
    """Return the script of a broken seed, with as few faults as still break it."""
    with simulated():
        return played(seed).script()


def tell(text: str, failed: bool) -> int:
    """Print a text; return the exit code."""
    sys.stdout.write(text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
