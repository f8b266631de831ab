"""Both cores of the residency protocol together, under random delays, deaths and lies (I2, I3, R1-R9)."""

from __future__ import annotations

import pytest
from expertflow.ipc.messages import StepPrediction
from expertflow.tests.residency.histories import histories, make_holdings, make_ledger, play, truth, worlds
from expertflow.tests.residency.world import Shape, World
from hypothesis import HealthCheck, given, settings

UNHURRIED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
QUICK = settings(max_examples=1000, deadline=None, suppress_health_check=UNHURRIED)
LONG = settings(QUICK, max_examples=20_000)


@QUICK
@given(worlds(), histories(most_turns=200))
def test_any_history_ends_with_all_work_done(world: World, history: bytes) -> None:
    """Breaks with a torn slot, a stale expert, a lost slot, a double transfer, or when nothing can go on."""
    play(world, history)


def test_a_spare_slot_takes_no_usual_expert_away() -> None:
    """A usual expert that was evicted for the spare slot would be fetched into that slot again, for ever."""
    shape = Shape(2, 2, 2, 1, 1, False, "auto", False, 2)
    history = bytes.fromhex("e90077b77a50a6683afde809be65e37f1771b69d1e308cb77420226d73547411f1925f72013b")
    play(World(shape, [[[0], [0]]], make_ledger, make_holdings), history)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@LONG
@given(worlds(), histories(most_turns=1000))
def test_any_long_history_ends_with_all_work_done(world: World, history: bytes) -> None:
    """The same, longer and more of it."""
    play(world, history)


def steps_of(shape: Shape, count: int) -> list[list[list[int]]]:
    """Every step uses two experts of each layer, another pair in the next step."""
    pair = [[(2 * step) % shape.experts, (2 * step + 1) % shape.experts] for step in range(count)]
    return [[pair[step]] * shape.layers for step in range(count)]


def world_of(shape: Shape, steps: int) -> World:
    return World(shape, steps_of(shape, steps), make_ledger, make_holdings)


@pytest.mark.parametrize("slots", [1, 2, 3, 11, 12, 20])
def test_work_is_done_with_any_number_of_slots(slots: int) -> None:
    """One slot is enough (R4); a surplus hurts nobody."""
    world_of(Shape(slots, layers=3, experts=4, top_k=2), steps=4).settle()


def test_with_room_for_all_nothing_is_ever_recalled() -> None:
    """Breaks when experts are evicted although each has a slot of its own."""
    world = world_of(Shape(12, layers=3, experts=4, top_k=2), steps=6)
    world.settle()
    facts = world.ledger.statistics()
    assert (facts.evictions, facts.loads, facts.held) == (0, 12, 12)


def test_true_plans_that_come_in_time_leave_no_misses() -> None:
    """Breaks when prefetching, rolling slots forward or protection fails: everything is foreseen and time is plenty."""
    world = world_of(Shape(8, layers=3, experts=8, top_k=2), steps=8)
    while not world.finished:
        if world.next_layer == 0 and world.layer is None:
            for step, used in enumerate(world.program[world.done_steps : world.done_steps + 2], world.number):
                world.advise(StepPrediction(step, truth(world.shape, used)))
        rest = [action for action in world.enabled() if not action.startswith("layer")]
        world.perform(rest[0] if rest else world.enabled()[0])
    assert world.holdings.statistics().misses == 0
    assert world.ledger.statistics().wasted == 0


def test_a_layer_of_hits_costs_no_message() -> None:
    """R2: only `Used` at the end of a step. Breaks when hits talk to the loader."""
    world = world_of(Shape(12, layers=3, experts=4, top_k=2), steps=2)
    for action in ("loader hears of compute", "compute hears of loader"):
        world.perform(action)
    while rest := [action for action in world.enabled() if not action.startswith("layer")]:
        world.perform(rest[0])
    while not world.finished:
        world.perform(world.enabled()[0])
        assert len(world.to_loader) in (0, 1)
        while rest := [action for action in world.enabled() if not action.startswith("layer")]:
            world.perform(rest[-1])
    assert world.holdings.statistics().misses == 0
