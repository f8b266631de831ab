"""One or two units by measured cost."""

from __future__ import annotations

from collections.abc import Callable

from expertflow.ipc.messages import RunStep, Split
from expertflow.tests.scheduler.world import MS, World, make_limits
from expertflow.workers.scheduler.mode_tuner import FIRST_REST_ROUNDS, ModeChoices, ModeTuner

ROWS = 8


class Machine:
    """Decodes with as many units as the pacer wants; `cost(units)` gives milliseconds and stall of one step."""

    def __init__(self, units: str, cost: Callable[[int], tuple[float, float]]) -> None:
        self.tuner, self.cost, self.now_ns, self.rows = ModeTuner(ModeChoices(units)), cost, 0, ROWS
        self.history: list[int] = []

    def run(self, rounds: int) -> None:
        for _ in range(rounds):
            units = self.tuner.wanted.units
            self.history.append(units)
            for _ in range(units):
                took_ms, stalled_ms = self.cost(units)
                self.now_ns += round(took_ms * MS)
                self.tuner.on_decode_step(self.now_ns, self.rows // units, round(stalled_ms * MS), self.rows)


def overlap_pays(units: int) -> tuple[float, float]:
    return (10, 5) if units == 1 else (3, 0.1)


def overlap_costs(units: int) -> tuple[float, float]:
    return (10, 5) if units == 1 else (6, 1)


def nothing_to_hide(units: int) -> tuple[float, float]:
    return (10, 0.1) if units == 1 else (1, 0)


def test_two_units_are_kept_when_they_are_faster() -> None:
    """The overlap of loading and computing is the point of the second unit."""
    machine = Machine("auto", overlap_pays)
    machine.run(70)
    assert machine.history[0] == 1 and machine.history[-30:] == [2] * 30


def test_one_unit_is_taken_up_again_when_two_are_slower() -> None:
    """Two units run shared experts twice; then the trial must end."""
    machine = Machine("auto", overlap_costs)
    machine.run(60)
    assert 2 in machine.history and machine.history[-30:] == [1] * 30


def test_without_stalls_two_units_are_not_even_tried() -> None:
    """With everything resident a trial only costs time (here two units would even look faster)."""
    machine = Machine("auto", nothing_to_hide)
    machine.run(400)
    assert set(machine.history) == {1}


def test_the_trial_is_repeated_ever_more_rarely() -> None:
    """Conditions change, but measuring costs."""
    machine = Machine("auto", overlap_costs)
    machine.run(40 * FIRST_REST_ROUNDS)
    trials = [i for i in range(1, len(machine.history)) if machine.history[i - 1 : i + 1] == [1, 2]]
    gaps = [later - earlier for earlier, later in zip(trials, trials[1:], strict=False)]
    assert len(gaps) >= 3 and gaps == sorted(gaps) and gaps[-1] > 3 * gaps[0]


def test_time_spent_on_prefills_is_not_counted() -> None:
    """A prefill between two steps must not make decoding look slow."""
    machine = Machine("auto", overlap_pays)
    for _ in range(60):
        machine.run(1)
        machine.now_ns += 500 * MS if machine.tuner.wanted.units == 2 else 0
        machine.tuner.on_interruption()
        machine.tuner.on_decode_step(machine.now_ns, ROWS // machine.tuner.wanted.units, 0, ROWS)
    assert machine.history[-1] == 2


def test_a_lone_row_cannot_be_split() -> None:
    """With one row left there is one unit, whatever was measured."""
    machine = Machine("auto", overlap_pays)
    machine.run(60)
    machine.rows = 1
    machine.tuner.on_decode_step(machine.now_ns, 1, 0, 1)
    assert machine.tuner.wanted.units == 1


def test_what_is_configured_is_not_measured() -> None:
    """units = one and two are orders."""
    for units, wanted in (("one", 1), ("two", 2)):
        machine = Machine(units, overlap_pays)
        machine.run(60)
        assert set(machine.history) == {wanted}


def orders_of(world: World, turns: int) -> list[object]:
    """Everything compute is told, while it runs `turns` steps that stall half the time."""
    told: list[object] = []
    for _ in range(turns):
        world.tick(MS)
        if world.compute is not None:
            told += list(world.compute.orders)
            world.compute.stall_ns = MS // 2
        world.compute_step()
    return told


def test_two_units_share_the_rows_and_the_next_step_is_sent_while_one_runs() -> None:
    """Otherwise compute would idle between steps and the predictor could not look ahead."""
    world = World(make_limits(batch_size=6, units="two"))
    books = [world.submit([i], max_new_tokens=30, eos_ids=[]) for i in range(6)]
    told = orders_of(world, 6)
    assert any(isinstance(order, Split) for order in told)
    assert world.compute is not None
    world.tick()
    waiting = [order for order in world.compute.orders if isinstance(order, RunStep)]
    assert len({order.unit for order in waiting}) == 2
    assert [len(unit.rows) for unit in world.compute.units.values()] == [3, 3]
    world.run_until_idle()
    assert all(book.tokens == book.expected() for book in books)


def test_two_units_are_evened_out_as_rows_come_and_go() -> None:
    """A unit of seven beside a unit of one hides nothing."""
    world = World(make_limits(batch_size=8, units="two"))
    for i in range(8):
        world.submit([i], max_new_tokens=30 if i % 2 else 8, eos_ids=[])
    for _ in range(30):
        world.tick()
        world.compute_step()
    assert world.compute is not None
    assert sorted(len(unit.rows) for unit in world.compute.units.values()) == [2, 2]


def test_auto_tries_two_units_on_a_machine_that_stalls() -> None:
    """The core must part units for the trial, and join them again after it."""
    world = World(make_limits(batch_size=4, units="auto", kv_bytes=100_000), context=1000)
    books = [world.submit([i], max_new_tokens=60, eos_ids=[]) for i in range(4)]
    told = orders_of(world, 120)
    assert any(isinstance(order, Split) for order in told)
    assert any(isinstance(order, RunStep) and order.join for order in told)
    assert world.core.statistics().trials == 1
    world.run_until_idle()
    assert all(book.tokens == book.expected() for book in books)
