"""Prediction and grouping by measured cost: kept where they are faster, off where they are not, and said so."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from expertflow.ipc.messages import RunStep
from expertflow.tests.scheduler.test_regrouping import check_all, grouping_world, turn
from expertflow.tests.scheduler.world import MS, World, make_limits
from expertflow.workers.scheduler.mode_tuner import FIRST_REST_ROUNDS, Mode, ModeChoices, ModeTuner

ROWS = 8
Cost = Callable[[Mode], float]


class Machine:
    """Decodes as the pacer wants; `cost` gives milliseconds of a round, a third of it stall. `noise`: most of a
    round's relative error."""

    def __init__(self, choices: ModeChoices, cost: Cost, noise: float = 0.0, rows: int = ROWS) -> None:
        self.tuner, self.cost, self.noise, self.rows = ModeTuner(choices), cost, noise, rows
        self.now_ns, self.rng = 0, random.Random(0)
        self.history: list[Mode] = []

    def run(self, rounds: int) -> None:
        for _ in range(rounds):
            mode = self.tuner.wanted
            self.history.append(mode)
            for _ in range(mode.units):
                took_ms = self.cost(mode) / mode.units * (1 + self.rng.uniform(-self.noise, self.noise))
                self.now_ns += round(took_ms * MS)
                self.tuner.on_decode_step(self.now_ns, self.rows // mode.units, round(took_ms * MS / 3), self.rows)

    def share(self, wanted: Callable[[Mode], bool], last: int) -> float:
        return sum(map(wanted, self.history[-last:])) / last


def price(units: float = 1, prediction: float = 1, grouping: float = 1) -> Cost:
    """Ten milliseconds a round, times a factor for each of: two units, no prediction, grouping."""

    def cost(mode: Mode) -> float:
        factors = (
            units if mode.units > 1 else 1,
            1 if mode.prediction else prediction,
            grouping if mode.grouping else 1,
        )
        return 10 * factors[0] * factors[1] * factors[2]

    return cost


EVERYTHING = ModeChoices("auto", "auto", "auto")


@pytest.mark.parametrize(
    ("cost", "best"),
    [
        (price(prediction=0.9), Mode(1, False, False)),
        (price(prediction=1.1), Mode(1, True, False)),
        (price(units=0.7, prediction=1.2), Mode(2, True, False)),
        (price(units=0.7, prediction=0.9, grouping=0.8), Mode(2, False, True)),
        (price(units=0.7, grouping=1.2), Mode(2, True, False)),
        (price(units=1.1, grouping=0.8), Mode(1, True, False)),
    ],
)
def test_the_fastest_way_is_found(cost: Cost, best: Mode) -> None:
    machine = Machine(EVERYTHING, cost)
    machine.run(1000)
    assert machine.tuner.wanted == best or machine.history[-40:].count(best) >= 20
    assert machine.share(lambda mode: mode == best, 800) > 0.75


def test_a_small_gain_changes_nothing() -> None:
    """Two per cent are noise."""
    machine = Machine(EVERYTHING, price(units=0.99, prediction=0.98, grouping=0.98))
    machine.run(1000)
    assert machine.share(lambda mode: mode == Mode(), 1000) > 0.8


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_noise_does_not_make_it_change_its_mind_all_the_time(noise: float) -> None:
    """Single rounds are off by up to a fifth: the better way holds most of the time."""
    machine = Machine(ModeChoices("one", "auto", "off"), price(prediction=1.15), noise)
    machine.run(6000)
    assert machine.share(lambda mode: mode.prediction, 6000) > 0.9


def test_what_changed_is_noticed() -> None:
    """Other text, a busier machine: prediction pays again."""
    machine = Machine(ModeChoices("one", "auto", "off"), price(prediction=0.8))
    machine.run(200)
    assert not machine.history[-1].prediction
    machine.cost = price(prediction=1.3)
    machine.run(4 * FIRST_REST_ROUNDS)
    assert machine.history[-1].prediction


def test_a_moment_in_which_the_machine_was_busy_is_not_believed() -> None:
    """What was measured before the other way is measured again after it (mutant: no second look)."""
    machine = Machine(ModeChoices("one", "auto", "off"), price())
    machine.cost = lambda mode: 20 if len(machine.history) <= 10 else 10
    machine.run(150)
    assert machine.tuner.trials == 1 and machine.tuner.wanted.prediction
    assert machine.share(lambda mode: mode.prediction, 120) == 1


def test_with_every_expert_resident_only_units_are_tried() -> None:
    """There is nothing to foresee."""
    machine = Machine(EVERYTHING, price(units=0.5, prediction=0.5, grouping=0.5))
    machine.tuner.resident = True
    machine.run(500)
    assert all(mode.prediction and not mode.grouping for mode in machine.history)


def test_rows_of_one_unit_are_not_grouped() -> None:
    machine = Machine(EVERYTHING, price(units=0.7, grouping=0.7))
    machine.run(1000)
    assert all(mode.units > 1 for mode in machine.history if mode.grouping)
    assert machine.history[-1].grouping


def test_a_lone_row_has_no_units_but_may_have_no_prediction() -> None:
    """Batch one is what a single user sees."""
    machine = Machine(EVERYTHING, price(units=0.5, prediction=0.8), rows=1)
    machine.run(300)
    assert all(mode.units == 1 for mode in machine.history)
    assert not machine.history[-1].prediction


def test_what_is_configured_is_not_measured() -> None:
    machine = Machine(ModeChoices("two", "on", "swap"), price(units=3, prediction=0.1, grouping=3))
    machine.run(100)
    assert set(machine.history) == {Mode(2, True, True)} and machine.tuner.trials == 0


def steps_without_forecast(world: World, turns: int) -> list[bool]:
    """Whether decode steps go without a forecast, on a machine on which these take half the time."""
    seen = []
    for _ in range(turns):
        world.tick()
        assert world.compute is not None
        steps = [order for order in world.compute.orders if isinstance(order, RunStep) and not order.admit]
        if steps:
            seen.append(not steps[0].predict)
            world.now_ns += MS if steps[0].predict else MS // 2
        world.compute_step()
    return seen


def test_prediction_goes_off_where_it_costs_more_than_it_saves_and_says_so() -> None:
    """No forecast is sent, compute is told, and the statistics tell everybody."""
    world = World(make_limits(prediction="auto", kv_bytes=100_000), context=1000)
    world.submit([1], max_new_tokens=200, eos_ids=[])
    assert world.core.statistics().prediction_wanted == 1
    seen = steps_without_forecast(world, 100)
    assert not any(seen[:8]) and all(seen[-20:])
    assert world.core.statistics().prediction_wanted == 0 and world.core.statistics().trials == 1
    check_all(world)


def test_grouping_is_kept_only_where_it_pays() -> None:
    """Two units in any case; steps with the rounds' waits take longer, so grouping ends as it began: off."""
    world = grouping_world(rows=8, grouping="auto", tokens=300)
    wanted = []
    for _ in range(200):
        wanted.append(world.core._tuner.wanted.grouping)
        world.now_ns += 3 * MS if wanted[-1] else 2 * MS
        turn(world)
    assert True in wanted and not any(wanted[-20:])
    assert world.core.statistics().grouping_wanted == 0
    check_all(world)
