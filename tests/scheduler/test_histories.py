"""The scheduler under random histories, and mutants that such histories must catch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest
from expertflow.ipc.messages import DropPrefix, RequestRow
from expertflow.tests.scheduler.histories import (
    BOTH_KINDS,
    ONE_KIND,
    History,
    Kinds,
    check_ends,
    check_leftovers,
    worlds,
)
from expertflow.tests.scheduler.world import World, make_limits
from expertflow.workers.scheduler import admission, prefills, prefixes, requests, state, stepper, units
from expertflow.workers.scheduler.events import SchedulerAction, ToCompute
from expertflow.workers.scheduler.limits import ComputeInfo
from expertflow.workers.scheduler.prefixes import FoundPrefix, PrefixIndex
from expertflow.workers.scheduler.requests import RequestState
from expertflow.workers.scheduler.units import UnitState
from expertflow.workers.scheduler.waiting_queue import WaitingQueue
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """Prompts of histories are short; their blocks must be, too."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prefixes, "BLOCK", 2)
        patched.setattr(admission, "MIN_SHARED", 3)
        yield


def play(world: World, seed: int, turns: int, kinds: Kinds = ONE_KIND) -> None:
    History(world, seed, kinds).play(turns)
    check_ends(world)
    check_leftovers(world)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds(), st.integers(0, 2**32 - 1), st.integers(0, 250))
def test_every_request_ends_once_with_its_own_tokens(world: World, seed: int, turns: int) -> None:
    """Whatever dies, breaks, is cancelled or comes back: I4, budgets, order of arrival, nothing left behind."""
    play(world, seed, turns)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds(), st.integers(0, 2**32 - 1), st.integers(0, 250))
def test_batch_invariant_requests_share_units_with_each_other_alone(world: World, seed: int, turns: int) -> None:
    """Compute and the world check the kind of every row that is admitted or joined (I1d)."""
    play(world, seed, turns, BOTH_KINDS)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds(), st.integers(0, 2**32 - 1), st.integers(0, 1500))
def test_long_histories_keep_what_short_ones_keep(world: World, seed: int, turns: int) -> None:
    play(world, seed, turns)


def forget_to_drop(self: UnitState, request: RequestState) -> None:
    """Mutant: an ended row stays in compute."""
    self.rows.pop(request.number, None)


def count_no_padding(each: Iterable[UnitState], compute: ComputeInfo, more: Iterable[RequestState] = ()) -> int:
    """Mutant: a row is reserved its own length, not that of its unit."""
    rows = [request for unit in each for request in unit.all_rows()] + list(more)
    return sum(row.positions * compute.kv_bytes_per_position + compute.kv_bytes_per_row for row in rows)


def forget_leaving_rows(each: Iterable[UnitState], compute: ComputeInfo, more: Iterable[RequestState] = ()) -> int:
    """Mutant: memory counts as free before compute was told to drop the row."""
    rows = [request for unit in each for request in unit.rows.values()] + list(more)
    longest = max((row.positions for row in rows), default=0)
    return len(rows) * (longest * compute.kv_bytes_per_position + compute.kv_bytes_per_row)


def start_over(self: RequestState, *prefix: object) -> RequestRow:
    """Mutant: after a death, output indices (and so the random numbers) start again."""
    return RequestRow(self.number, self.prompt_ids + self.tokens, 0, self.sampling)


def lose_what_was_made(self: RequestState, *prefix: object) -> RequestRow:
    """Mutant: after a death, the sequence is computed without its output."""
    return RequestRow(self.number, self.prompt_ids, len(self.tokens), self.sampling)


def first_come_first_served(self: WaitingQueue) -> Iterator[RequestState]:
    """Mutant: one client's hundreds go before another's one."""
    return iter(self._all.values())


def forget_the_lost(self: WaitingQueue, requests: list[RequestState]) -> None:
    """Mutant: requests die with compute."""


MUTANTS: list[tuple[object, str, Callable[..., object]]] = [
    (UnitState, "leave", forget_to_drop),
    (admission, "reserved_bytes", count_no_padding),
    (admission, "reserved_bytes", forget_leaving_rows),
    (RequestState, "row", start_over),
    (RequestState, "row", lose_what_was_made),
    (WaitingQueue, "put_back", forget_the_lost),
    (WaitingQueue, "__iter__", first_come_first_served),
    (state, "finish_reason", lambda request: "length" if len(request.tokens) >= request.token_limit else None),
    (requests.RequestLedger, "ended", lambda self, request_id: None),
]


KIND_MUTANTS: list[tuple[object, str, Callable[..., object]]] = [
    (admission, "_same_kind", lambda waiting, head: waiting),
    (units, "_groups", lambda each, compute: [[unit for unit in each if unit.rows]]),
    (stepper, "can_join", lambda each, compute: compute.joining),
]


@pytest.mark.parametrize(("where", "name", "mutant"), KIND_MUTANTS, ids=lambda value: getattr(value, "__name__", None))
def test_mutants_that_mix_kinds_are_caught(
    where: object, name: str, mutant: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, mutant)
    with pytest.raises((AssertionError, KeyError)):
        for seed in range(300):
            limits = make_limits(units=("one", "two")[seed % 2], grouping=("off", "swap")[seed % 2])
            play(World(limits, context=40), seed, 200, BOTH_KINDS)


CHUNK_MUTANTS: list[tuple[object, str, object]] = [
    (stepper.Stepper, "owes_decode", property(lambda self: False)),
    (stepper.Stepper, "active", property(lambda self: [unit for unit in self.units.values() if unit.rows])),
    (RequestState, "prefill_length", property(lambda self: self.length)),
    (admission.Room, "is_chunked", lambda self, request: False),
]


@pytest.mark.parametrize(("where", "name", "mutant"), CHUNK_MUTANTS, ids=lambda value: getattr(value, "__name__", None))
def test_mutants_of_chunks_are_caught(
    where: object, name: str, mutant: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, mutant)
    with pytest.raises((AssertionError, KeyError, ValueError)):
        for seed in range(300):
            limits = make_limits(units=("one", "two")[seed % 2], batch_invariant=seed % 3 == 0, prefill_chunk=4)
            play(World(limits, context=40), seed, 200)


def find_one_more(self: PrefixIndex, request: RequestState) -> FoundPrefix:
    """Mutant: a position too many is taken from the prefix."""
    found = honest_find(self, request)
    return FoundPrefix(found.blocks, found.count + 1) if found.count else found


def find_of_any(self: PrefixIndex, request: RequestState) -> FoundPrefix:
    """Mutant: blocks of another row are taken."""
    numbers = [block.number for block in self._blocks.values()][: (request.prefill_length - 1) // 2]
    return FoundPrefix(numbers, 2 * len(numbers))


def look_up_before_dropping(self: prefills.Prefills, room: admission.Room, now_ns: int) -> list[SchedulerAction]:
    """Mutant: a row is sent what was found before its room was made."""
    picked = admission.pick_prefill(self._waiting, room)
    if not picked or picked[0].deaths:
        return []
    rows = self._rows(picked, room)
    dropped = self._prefixes.make_room(picked, room.spare_positions(picked))
    for request in picked:
        self._waiting.start(request)
    return [ToCompute(DropPrefix(dropped)), *self._stepper.prefill(picked, rows)]


honest_find = PrefixIndex.find

PREFIX_MUTANTS: list[tuple[object, str, object]] = [
    (PrefixIndex, "find", find_one_more),
    (PrefixIndex, "find", find_of_any),
    (PrefixIndex, "make_room", lambda self, requests, room: []),
    (PrefixIndex, "clear", lambda self: None),
    (prefixes, "_root", lambda request: 0),
    (prefills.Prefills, "_start", look_up_before_dropping),
]


@pytest.mark.parametrize(
    ("where", "name", "mutant"), PREFIX_MUTANTS, ids=lambda value: getattr(value, "__name__", None)
)
def test_mutants_of_prefixes_are_caught(
    where: object, name: str, mutant: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, mutant)
    with pytest.raises((AssertionError, KeyError, IndexError)):
        for seed in range(400):
            limits = make_limits(
                batch_size=3,
                kv_bytes=(300, 500)[seed % 2],
                prefill_chunk=(0, 2, 4)[seed % 3],
                prefix_cache=True,
            )
            play(World(limits, context=40), seed, 200, BOTH_KINDS)


@pytest.mark.parametrize(("where", "name", "mutant"), MUTANTS, ids=lambda value: getattr(value, "__name__", None))
def test_mutants_are_caught(
    where: object, name: str, mutant: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mistake must show in a few hundred histories, or the checks above prove nothing."""
    monkeypatch.setattr(where, name, mutant)
    shapes = [make_limits(batch_size=3, kv_bytes=kv_bytes, prefill_tokens=30) for kv_bytes in (400, 700, 10_000)]
    with pytest.raises((AssertionError, KeyError)):
        for seed in range(300):
            play(World(shapes[seed % 3], context=40), seed, turns=200)
    monkeypatch.undo()
    assert units.reserved_bytes is admission.reserved_bytes
