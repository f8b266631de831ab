"""Random histories of the gateway: whatever dies, every request ends once and its client has every token once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from expertflow.ipc.messages import Finished
from expertflow.runtime.cluster.gateway.book import StreamBook
from expertflow.runtime.cluster.gateway.state import Gateway
from expertflow.runtime.cluster.gateway.stream import Stream

from tests.runtime.cluster.world import World, submit_of, token_at

REQUESTS = 40
RULES = ("experts", "two-choices", "round-robin", "prefix")


def live_through(seed: int, rule: str = "experts") -> World:
    """Submit requests while replicas die, drain and join; then let all of them end."""
    world = World(seed, rule)
    rng, todo, cancelled = world.rng, list(range(REQUESTS)), set[str]()
    while todo or rng.random() < 0.99:
        match rng.randrange(40):
            case 0 | 1 | 2 | 3 if todo:
                number = todo.pop()
                world.submit(submit_of(number, tokens=1 + number % 12))
            case 4 if len(world.replicas) < 5:
                world.join()
            case 5 if world.replicas:
                world.kill(rng.choice(sorted(world.replicas)))
            case 6 if world.replicas:
                world.drain(rng.choice(sorted(world.replicas)))
            case 7 if rng.random() < 0.3:
                cancelled.add(name := f"r{rng.randrange(REQUESTS)}")
                world.cancel(name)
            case 8 if world.draining:
                world.open_again(rng.choice(sorted(world.draining)))
            case 9 if world.replicas:
                replica = world.replicas[rng.choice(sorted(world.replicas))]
                replica.busy = not replica.busy
            case _:
                world.step()
        check_capacity(world)
    for replica in world.replicas.values():
        replica.busy = False
    world.join()
    world.run()
    check_ends(world, cancelled)
    return world


def check_ends(world: World, cancelled: set[str]) -> None:
    assert sorted(world.ends) == sorted(f"r{number}" for number in range(REQUESTS))
    for name, ends in world.ends.items():
        assert len(ends) == 1, f"{name} ended {len(ends)} times"
        (end,) = ends
        assert isinstance(end, Finished), end
        seed = int(name[1:])
        assert end.token_ids == [token_at(seed, place) for place in range(len(end.token_ids))]
        assert end.token_ids[: len(world.got.get(name, []))] == world.got.get(name, [])
        if name not in cancelled:
            assert end.finish_reason == "length" and len(end.token_ids) == 1 + seed % 12
            assert world.got[name] == end.token_ids
    assert not len(world.gateway.book.waiting) and not world.gateway.router.fleet.outstanding.any()


def check_capacity(world: World) -> None:
    """Check that no replica has more requests than it was given room for."""
    fleet = world.gateway.router.fleet
    for name in world.replicas:
        if name in fleet and name not in world.draining:
            assert fleet.outstanding[fleet.index(name)] <= fleet.capacity[fleet.index(name)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(8))
def test_every_request_ends_once_whatever_dies(seed: int, rule: str) -> None:
    live_through(seed, rule)


def test_requests_really_moved() -> None:
    assert sum(live_through(seed).gateway.moved for seed in range(8)) > 50


def forget_tokens(self: Stream, replica: str, now_ns: int, place: Any = Stream.place) -> Any:
    return msgspec.structs.replace(place(self, replica, now_ns), resume_ids=[])


def repeat_tokens(self: Stream, token_ids: list[int], offset: int) -> list[int]:
    return token_ids


def keep_the_attempt(self: Stream) -> str:
    return str(self.number)


def lose_the_waiting(self: StreamBook, streams: Any, now_ns: int) -> list[Any]:
    return []


def count_no_end(self: Gateway, stream: Stream) -> None:
    self._placed.get(stream.replica or "", {}).pop(stream.id_at_replica, None)  # type: ignore[reportPrivateUsage]


MUTANTS: list[tuple[type, str, Callable[..., Any] | property]] = [
    (Stream, "_fresh", repeat_tokens),
    (Stream, "id_at_replica", property(keep_the_attempt)),
    (StreamBook, "put_back", lose_the_waiting),
    (Gateway, "_unplace", count_no_end),
    (Gateway, "_drain", lambda self, name: []),
    (Gateway, "_lose", lambda self, name: []),
]


@pytest.mark.parametrize("cls, name, mutant", MUTANTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_mutant_is_caught(cls: type, name: str, mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cls, name, mutant)
    with pytest.raises((AssertionError, KeyError)):
        for seed in range(8):
            live_through(seed)


def test_a_replica_that_is_not_told_the_tokens_repeats_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client still has each once; but work is done again, which the place of the first token shows."""
    assert all(submit.resume_ids == [] for _, submit in live_through(0).sent) is False
    monkeypatch.setattr(Stream, "place", forget_tokens)
    assert all(submit.resume_ids == [] for _, submit in live_through(0).sent)
