"""The whole protocol under random histories: real cores and shells, simulated time, sockets and processes (I3, I4, I6).

A history that breaks prints a script. `python -m expertflow.tests.simulation --script FILE` replays it event by event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest
from expertflow.tests.simulation.clock import simulated
from expertflow.tests.simulation.history import Outcome, replay, run_plan, run_seed, shrink
from expertflow.tests.simulation.plan import STAGES, Fault, Plan, draw_plan

BLOCKS = [range(first, first + 200) for first in range(0, 1000, 200)]
SLOW_BLOCKS = [range(first, first + 1000) for first in range(1000, 9000, 1000)]


@pytest.fixture(scope="module", autouse=True)
def simulation() -> Iterator[None]:
    with simulated():
        yield


def assert_unbroken(seeds: range) -> None:
    for seed in seeds:
        outcome = run_seed(seed)
        if outcome.broken:
            pytest.fail(shrink(outcome).script(), pytrace=False)


@pytest.mark.parametrize("seeds", BLOCKS, ids=lambda seeds: f"from_{seeds.start}")
def test_whatever_dies_or_hangs_every_request_ends_once_and_nothing_is_left(seeds: range) -> None:
    assert_unbroken(seeds)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SLOW_BLOCKS, ids=lambda seeds: f"from_{seeds.start}")
def test_more_histories_end_as_well(seeds: range) -> None:
    assert_unbroken(seeds)


def quiet_plan(seed: int) -> Plan:
    """Return the plan of a seed without faults, cancellations and deadlines."""
    plan = draw_plan(seed)
    requests = [msgspec.structs.replace(request, cancel_us=0, deadline_ms=None) for request in plan.requests]
    return msgspec.structs.replace(plan, requests=requests, faults=[])


def happened(outcome: Outcome) -> Counter[str]:
    """Return how often stages were started and the supervisor sent notice of a death."""
    words = Counter(name.split(".")[0] for _, name, _ in outcome.log if name.startswith("start "))
    words["died"] = sum("PeerDied" in line for line in outcome.script().splitlines())
    return words


def test_without_faults_nothing_dies() -> None:
    """The other histories would prove little if stages were restarted all the time."""
    for seed in range(20):
        outcome = run_plan(quiet_plan(seed))
        assert not outcome.broken, outcome.script()
        assert happened(outcome) == {f"start {stage}": 1 for stage in STAGES} | {"start supervisor": 1, "died": 0}


@pytest.mark.parametrize("kind", ["kill", "stop"])
@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_that_dies_or_hangs_is_replaced(stage: str, kind: str) -> None:
    """A stop without an end is a hang: only the watchdog can end it."""
    for seed in range(5):
        plan = msgspec.structs.replace(quiet_plan(seed), faults=[Fault(500_000, kind, stage, seed)])
        outcome = run_plan(plan)
        assert not outcome.broken, outcome.script()
        assert happened(outcome)[f"start {stage}"] == 2


def test_a_stage_that_dies_too_often_ends_the_engine_and_every_request() -> None:
    plan = quiet_plan(3)
    faults = [Fault(600_000 + 700_000 * number, "kill", "loader") for number in range(5)]
    late = [msgspec.structs.replace(request, at_us=3_000_000) for request in plan.requests]
    outcome = run_plan(msgspec.structs.replace(plan, faults=faults, requests=[*late]))
    assert not outcome.broken, outcome.script()
    assert happened(outcome)["start loader"] == 5, "the fifth death goes beyond the limit of four"


@pytest.mark.parametrize("seed", range(0, 60, 4))
def test_a_seed_and_its_script_give_the_same_history(seed: int) -> None:
    """Else a broken history could not be looked at."""
    script = run_seed(seed).script()
    assert run_seed(seed).script() == script
    assert replay(script).script() == script


def test_a_script_that_asks_for_the_impossible_is_refused() -> None:
    script = run_seed(0).script()
    lines = script.splitlines()
    place = next(place for place, line in enumerate(lines) if "fills slot" in line)
    lines[place] = lines[place].replace("fills slot", "fills slot 9")
    outcome = replay("\n".join(lines))
    assert outcome.broken.startswith("script: not possible at ")
