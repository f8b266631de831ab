"""The simulation can fail: each fault that is planted in a core is caught by the histories of a few known seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from expertflow.tests.simulation.clock import simulated
from expertflow.tests.simulation.history import replay, run_seed, shrink
from expertflow.tests.simulation.mutants import MUTANTS, Mutant, planted
from expertflow.tests.simulation.table import CHECKS, search

MOST = 30
"""Histories from the known seed on: a change of a core may move the fault a little."""
AT_LEAST = {"scheduler": 3, "ledger": 3, "holdings": 3, "session": 3, "roster": 3, "watchdog": 3, "predictor": 2}


@pytest.fixture(scope="module", autouse=True)
def simulation() -> Iterator[None]:
    with simulated():
        yield


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.core}-{mutant.name}")
def test_a_planted_fault_is_caught(mutant: Mutant) -> None:
    """From the seed that is known to catch it on; `--mutants` counts from the first."""
    count, outcome = search(mutant, mutant.seed, MOST)
    assert outcome is not None, f"not in {count} histories from seed {mutant.seed}"
    assert outcome.check in CHECKS, outcome.broken


def test_every_core_has_its_faults() -> None:
    counted = Counter(mutant.core for mutant in MUTANTS)
    assert all(counted[core] >= least for core, least in AT_LEAST.items()), counted
    assert len(MUTANTS) >= 24


def test_a_broken_history_is_made_smaller_and_its_script_breaks_the_same() -> None:
    """The script is what a reader gets; it must show the fault, and not much else."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "start_over")
    with planted(mutant):
        _, outcome = search(mutant, mutant.seed, MOST)
        assert outcome is not None
        smaller = shrink(outcome)
        assert smaller.check == outcome.check and len(smaller.plan.faults) <= len(outcome.plan.faults)
        assert len(smaller.log) <= len(outcome.log)
        assert replay(smaller.script()).broken == smaller.broken
    assert not run_seed(outcome.plan.seed).broken
