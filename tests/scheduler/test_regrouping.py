"""Rows change units between rounds, where the predictor answers in time and the saving is above the cost."""

from __future__ import annotations

import pytest
from expertflow.ipc.messages import RowPredictions, RunStep, Split
from expertflow.tests.scheduler.fake_predictor import EXPERTS, LAYERS, route_of_kind
from expertflow.tests.scheduler.world import Book, World, finished, make_limits
from expertflow.workers.scheduler import events
from expertflow.workers.scheduler.limits import ComputeInfo
from expertflow.workers.scheduler.regrouping import MAX_REST_ROUNDS


def grouping_world(rows: int = 8, units: str = "two", grouping: str = "swap", tokens: int = 40) -> World:
    """Rows of two kinds, in turn, all decoding."""
    world = World(make_limits(batch_size=rows, units=units, grouping=grouping, kv_bytes=100_000), context=1000)
    world.predictor.route = route_of_kind
    for row in range(rows):
        world.submit([row], max_new_tokens=tokens, eos_ids=[])
    return world


def turn(world: World, answer: bool = True) -> None:
    """Whatever is due happens once; the predictor, if it answers at all, does so before compute ends its step."""
    world.tick()
    while answer and world.answer():
        world.tick()
    world.compute_step()


def held(world: World) -> list[list[int]]:
    """The rows of compute's units."""
    assert world.compute is not None
    return sorted(sorted(row.number for row in unit.live()) for unit in world.compute.units.values())


def check_all(world: World) -> None:
    world.run_until_idle()
    for book in world.books.values():
        assert finished(book).token_ids == book.expected()


@pytest.mark.parametrize("grouping", ["swap", "kmeans"])
def test_rows_that_use_the_same_experts_come_together(grouping: str) -> None:
    """Each kind of rows ends up in a unit of its own, without a token being lost or changed."""
    world = grouping_world(rows=6, grouping=grouping)
    for _ in range(20):
        turn(world)
    statistics = world.core.statistics()
    assert statistics.regroupings >= 1 and statistics.rows_moved >= 2
    assert [[1, 3, 5], [2, 4, 6]] in _constellations(world, 8)
    check_all(world)


def _constellations(world: World, turns: int) -> list[list[list[int]]]:
    seen = []
    for _ in range(turns):
        turn(world)
        seen.append(held(world))
    return seen


@pytest.mark.parametrize("units", ["three", "four"])
def test_more_than_two_units(units: str) -> None:
    """Units of equal size, and rows that change places among all of them."""
    world = grouping_world(rows=12, units=units)
    constellations = _constellations(world, 40)
    count = {"three": 3, "four": 4}[units]
    assert [len(rows) for rows in constellations[-1]] == [12 // count] * count
    assert world.core.statistics().regroupings >= 1
    pure = [all(len({row % 2 for row in rows}) == 1 for rows in each) for each in constellations]
    assert any(pure) == (count == 4), "six rows of a kind fill units of three, but not of four"
    check_all(world)


def test_units_swap_only_the_rows_that_change() -> None:
    """Orders: leavers part from both units, and join the next steps crosswise; nothing else is moved."""
    world = grouping_world(rows=4)
    orders: list[object] = []
    for _ in range(12):
        world.tick()
        while world.answer():
            world.tick()
        assert world.compute is not None
        orders += [order for order in world.compute.orders if order not in orders]
        world.compute_step()
    splits = [order for order in orders if isinstance(order, Split)][1:]  # the first made two units of one
    joins = [order for order in orders if isinstance(order, RunStep) and order.join]
    assert [len(split.rows) for split in splits] == [1, 1]
    assert {join.unit: join.join for join in joins} == {
        splits[1].unit: [splits[0].into],
        splits[0].unit: [splits[1].into],
    }


def test_a_silent_predictor_costs_ever_fewer_waits() -> None:
    """Steps go on after a moment, and the rests between questions grow."""
    world = grouping_world(tokens=400)
    waits: list[int] = []
    for number in range(600):
        turn(world, answer=False)
        world.predictor.questions.clear()
        if world.core.wake_at_ns(world.now_ns) is not None:
            waits.append(number)
            world.tick(1_000_000)
    gaps = [later - earlier for earlier, later in zip(waits, waits[1:], strict=False)]
    assert len(waits) >= 5 and gaps[-1] > 8 * gaps[0] and gaps[-1] <= 3 * MAX_REST_ROUNDS
    assert world.core.statistics().regroupings == 0
    assert world.core.statistics().unpredicted >= len(waits) - 1
    check_all(world)


def test_a_round_waits_for_an_answer_no_longer_than_a_part_of_a_step() -> None:
    """Compute stands still meanwhile."""
    world = grouping_world()
    while world.core.wake_at_ns(world.now_ns) is None:
        turn(world, answer=False)
    wake_at_ns = world.core.wake_at_ns(world.now_ns)
    assert wake_at_ns is not None and world.now_ns < wake_at_ns <= world.now_ns + 100, "a step takes 1000"
    assert world.compute is not None and not world.compute.steps_waiting
    world.tick(wake_at_ns - world.now_ns)
    assert world.compute.steps_waiting == 2
    check_all(world)


def test_answers_that_come_too_late_are_dropped() -> None:
    """They speak of rows where they were."""
    world = grouping_world()
    late: list[RowPredictions] = []
    for _ in range(40):
        turn(world, answer=False)
        world.tick(1000)
        for answer in late:
            world.do(events.RowPredictionsReady(answer))
        late = []
        while (answer := world.predictor.answer()) is not None:
            late.append(answer)
        world.tick(1000)
    assert world.core.statistics().regroupings == 0 and world.core.statistics().invalid_answers >= 3
    check_all(world)


@pytest.mark.parametrize("kind", range(5))
def test_answers_that_fit_no_question_are_dropped_and_counted(kind: int) -> None:
    """A predictor can say anything (I2)."""
    world = grouping_world()
    for _ in range(20):
        turn(world, answer=False)
        if world.predictor.questions:
            world.do(events.RowPredictionsReady(world.predictor.nonsense(kind)))
            world.predictor.questions.clear()
    statistics = world.core.statistics()
    assert statistics.invalid_answers >= 2 and statistics.regroupings == 0
    check_all(world)


def test_rows_stay_where_moving_them_costs_more_than_it_saves() -> None:
    """The first exchange is a try, then its cost is known: six experts of 100 ns against 4000 ns a unit."""
    world = grouping_world(rows=8, tokens=200)
    assert world.compute is not None
    world.compute.moved_ns = 4000
    for _ in range(60):
        turn(world)
    assert world.core.statistics().regroupings == 1
    # From now on the kinds change all the time, so that there is something to gain in every round.
    world.predictor.route = lambda row, position: route_of_kind(row + (row * position) % 3, position)
    for _ in range(60):
        turn(world)
    assert world.core.statistics().regroupings == 1
    check_all(world)


def test_a_cheap_move_is_repeated_whenever_it_saves() -> None:
    """The same with moves for nothing."""
    world = grouping_world(rows=8, tokens=200)
    world.predictor.route = lambda row, position: route_of_kind(row + (row * position) % 3, position)
    for _ in range(60):
        turn(world)
    assert world.core.statistics().regroupings > 10
    check_all(world)


def test_after_computes_death_old_answers_mean_nothing() -> None:
    """Rows are prefilled again, one of them alone at first, and grouped again."""
    world = grouping_world()
    for _ in range(6):
        turn(world, answer=False)
    answer = world.predictor.answer()
    assert answer is not None
    world.predictor.questions.clear()
    world.kill_compute()
    world.start_compute()
    world.do(events.RowPredictionsReady(answer))
    assert world.core.statistics().invalid_answers == 1
    for _ in range(30):
        turn(world)
    assert world.core.statistics().regroupings >= 1
    check_all(world)


def test_rows_that_end_on_their_way_leave_nothing_behind() -> None:
    """With four units only two steps are in flight: some rows are between units when their requests are cancelled."""
    world = grouping_world(rows=12, units="four")
    between = 0
    for _ in range(60):
        turn(world)
        travellers = [unit for unit in world.core._stepper.units.values() if unit.migrating]
        for unit in travellers:
            between += 1
            for request in list(unit.rows.values()):
                world.cancel(world.books[request.request_id])
            break
    assert between
    world.run_until_idle()
    assert world.compute is not None and not world.compute.units
    assert all(len(book.ends) == 1 for book in world.books.values())


def test_a_model_whose_rows_cannot_move_is_not_regrouped() -> None:
    world = World(
        make_limits(batch_size=4, units="two", grouping="swap"), ComputeInfo(kv_bytes_per_position=10, moving=False)
    )
    books: list[Book] = [world.submit([row], max_new_tokens=8, eos_ids=[]) for row in range(4)]
    for _ in range(10):
        turn(world)
    assert world.core.statistics().regroupings == 0
    check_all(world)
    assert all(book.ends for book in books)


def test_prefills_are_in_the_order_of_arrival() -> None:
    """Only decode steps are regrouped; new rows join as ever, while others change units."""
    world = grouping_world(rows=6, tokens=12)
    for row in range(20):
        world.submit([row, 1, 2], max_new_tokens=5 + row % 7, eos_ids=[])
    for _ in range(80):
        turn(world)
    assert world.core.statistics().regroupings >= 1
    check_all(world)
    assert world.admitted == sorted(world.admitted)


def test_scores_have_the_models_shape() -> None:
    """The world's own figures."""
    assert route_of_kind(1, 0).shape == (LAYERS, EXPERTS)
