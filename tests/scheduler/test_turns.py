"""Clients take turns: a small request waits for no other client's hundreds, and nobody starves."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from expertflow.ipc.messages import Sampling
from expertflow.tests.scheduler.world import STARTS_MEANWHILE, World, finished, make_limits
from expertflow.workers.scheduler.requests import Client, RequestState
from expertflow.workers.scheduler.waiting_queue import ClientTurns, WaitingQueue, _Account
from hypothesis import example, given, settings
from hypothesis import strategies as st


def waiting_request(
    number: int, client: bytes, priority: int = 0, positions: int = 1, user: str = ""
) -> RequestState:
    return RequestState(
        number=number, request_id=str(number), identity=client, digest=b"", prompt_ids=[1], sampling=Sampling(),
        stop_ids=frozenset(), token_limit=1, positions=positions, accepted_ns=number, priority=priority,
        user=user,
    )  # fmt: skip


def line_of(clients: bytes) -> WaitingQueue:
    """A line in which request i, from 1, is of the client with this letter."""
    line = WaitingQueue()
    for number, client in enumerate(clients, 1):
        line.join(waiting_request(number, bytes([client])))
    return line


def start_all(line: WaitingQueue) -> list[int]:
    numbers = []
    while len(line):
        request = next(iter(line))
        line.start(request)
        numbers.append(request.number)
    return numbers


@pytest.mark.parametrize(
    ("clients", "order"),
    [
        (b"aaaa", [1, 2, 3, 4]),
        (b"aaab", [1, 4, 2, 3]),
        (b"aabbbc", [1, 3, 6, 2, 4, 5]),
    ],
)
def test_clients_start_in_turn_and_their_requests_in_order(clients: bytes, order: list[int]) -> None:
    """What the iteration announces is what happens, one start at a time."""
    assert [request.number for request in line_of(clients)] == order
    assert start_all(line_of(clients)) == order


def test_a_newcomer_is_next() -> None:
    """Strict rotation would put it behind one more request of the other client."""
    line = line_of(b"a" * 400)
    for _ in range(3):
        line.start(next(iter(line)))
    line.join(waiting_request(401, b"b"))
    assert [request.number for request in line][:4] == [401, 4, 5, 6]


def test_a_stream_of_newcomers_starves_nobody() -> None:
    """Each new client goes first in its round, but the round is closed when it begins."""
    line, number = line_of(b"aa"), 2
    started = list[bytes]()
    for client in range(100, 110):
        number += 1
        line.join(waiting_request(number, bytes([client])))
        request = next(iter(line))
        line.start(request)
        started.append(request.identity)
    assert started.index(b"a") <= 1 and started.count(b"a") == 2


def test_lost_requests_go_first_and_take_no_turn() -> None:
    line = line_of(b"aab")
    first, second = list(line)[:2]
    line.start(first)
    line.start(second)
    line.put_back([second, first])
    assert [request.number for request in line] == [1, 3, 2]
    assert start_all(line) == [1, 3, 2]


def test_a_lower_priority_number_starts_first_and_clients_take_turns_within_one() -> None:
    """Whoever sent it and whenever it came; lost requests go ahead of all."""
    line, priorities = WaitingQueue(), (1, 1, 1, 0, 0, -2, 1, 0)
    for number, (client, priority) in enumerate(zip(b"aabaaaab", priorities, strict=True), 1):
        line.join(waiting_request(number, bytes([client]), priority))
    assert [request.number for request in line] == [6, 4, 8, 5, 1, 3, 2, 7]
    first, late = next(iter(line)), list(line)[4]
    for request in (first, late):
        line.start(request)
    line.put_back([late])
    assert start_all(line) == [1, 4, 8, 5, 3, 2, 7]


def test_a_client_with_a_new_identity_has_one_turn() -> None:
    """Its requests of before and those of now are one queue."""
    line = line_of(b"aab")
    for request in list(line):
        if request.identity == b"a":
            request.identity = b"c"
            line.follow(request)
    line.join(waiting_request(4, b"c"))
    assert [request.number for request in line] == [3, 1, 2, 4]


def test_two_tokens_do_not_wait_behind_four_hundred_requests() -> None:
    """They start with the next free row."""
    world = World(make_limits(batch_size=4, queue_limit=1000))
    many = [world.submit([1 + i % 40], max_new_tokens=9, identity=b"a", eos_ids=[]) for i in range(400)]
    for _ in range(5):
        world.tick()
        world.compute_step()
    few = world.submit([3], max_new_tokens=2, identity=b"b", eos_ids=[])
    ended_before = sum(bool(book.ends) for book in many)
    while not few.ends:
        world.tick()
        world.compute_step()
    assert sum(bool(book.ends) for book in many) - ended_before <= 4
    assert finished(few).token_ids == few.expected()


def test_clients_share_tokens_and_not_starts() -> None:
    """A client of short requests starts as many as take what one long one of another takes."""
    line = WaitingQueue()
    for number in range(1, 21):
        line.join(waiting_request(number, b"a", positions=100))
    for number in range(21, 1021):
        line.join(waiting_request(number, b"b", positions=2))
    given = Counter[bytes]()
    for _ in range(515):
        request = next(iter(line))
        line.start(request)
        given[request.identity] += request.positions
    assert 0 <= given[b"a"] - given[b"b"] <= 100


def test_users_of_one_connection_take_turns() -> None:
    """A server stands for many: its connection is one, its users are not."""
    line = WaitingQueue()
    for number, user in enumerate(["x", "x", "x", "y", "", "x"], 1):
        line.join(waiting_request(number, b"a", user=user))
    assert start_all(line) == [1, 4, 5, 2, 3, 6]


class Fairness:
    """Random comings, goings, starts and losses over one line; counts what others are given while a client waits."""

    def __init__(self, rng: random.Random, sizes: Sequence[int] = (1,)) -> None:
        self.rng, self.line, self.number, self.sizes = rng, WaitingQueue(), 0, sizes
        self.started: list[RequestState] = []
        self.seen: Counter[tuple[Client, Client]] = Counter()

    def join(self) -> None:
        client = bytes([self.rng.choice(b"aaaabbcdefgh")])
        for _ in range(self.rng.choice((1, 1, 30 if client == b"a" else 2))):
            self.number += 1
            self.line.join(waiting_request(self.number, client, positions=self.rng.choice(self.sizes)))

    def cancel(self) -> None:
        if requests := list(self.line):
            self.line.leave(self.rng.choice(requests))

    def lose(self) -> None:
        lost = [request for request in self.started if self.rng.random() < 0.5]
        self.started = []
        self.line.put_back(lost)
        assert [request.number for request in self.line][: len(lost)] == sorted(request.number for request in lost)

    def start(self) -> None:
        """As a prefill does: some of those that the line announces, from its head on."""
        picked = list(self.line)[: self.rng.choice((1, 1, 3))]
        for request in picked:
            if request.number not in {each.number for each in self.line._lost.values()}:
                self._count(request)
            self.line.start(request)
        self.started += picked

    def _count(self, starting: RequestState) -> None:
        queues = {request.client for request in self.line if request.number in self.line._client}
        assert starting.number == min(
            number for number, client in self.line._client.items() if client == starting.client
        )
        for client in queues - {starting.client}:
            self.seen[client, starting.client] += starting.positions
            assert self.seen[client, starting.client] <= STARTS_MEANWHILE * max(self.sizes)
        self._forget({starting.client})

    def _forget(self, clients: set[Client]) -> None:
        for pair in [pair for pair in self.seen if pair[0] in clients]:
            del self.seen[pair]

    def play(self, turns: int) -> None:
        for choice in self.rng.choices((self.join, self.start, self.cancel, self.lose), (10, 20, 2, 1), k=turns):
            choice()
            self._forget({waiting for waiting, _ in self.seen} - set(self.line._client.values()))
            assert len(self.line) == len(list(self.line))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_no_client_starts_more_than_two_while_another_waits(seed: int) -> None:
    """The bound that docs/protocol.md promises, of requests of one size."""
    Fairness(random.Random(seed)).play(300)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
@example(178845706)  # the clock went back, and a client that was forgotten came back ahead
def test_no_client_is_given_more_than_two_of_the_largest_while_another_waits(seed: int) -> None:
    """And of requests of several sizes."""
    Fairness(random.Random(seed), (1, 2, 30, 100)).play(300)


def stop_the_clock(self: ClientTurns, request: RequestState, client: Client) -> None:
    """Mutant: newcomers always go first, and starve those that wait."""
    COUNT_TURN(self, request, client)
    self._clock = 0.0


def save_up(self: ClientTurns, request: RequestState, client: Client) -> None:
    """Mutant: a client that was away is owed all that others were given meanwhile."""
    self._accounts.setdefault(client, _Account(0.0))
    JOIN(self, request, client)
    self._accounts[client].mark = 0.0 if len(self._queues[client]) == 1 else self._accounts[client].mark


COUNT_TURN, JOIN = ClientTurns.count_turn, ClientTurns.join


@pytest.mark.parametrize(
    ("owner", "name", "mutant"),
    [
        (ClientTurns, "count_turn", stop_the_clock),
        (ClientTurns, "join", save_up),
        (WaitingQueue, "__iter__", lambda self: iter(self._all.values())),
    ],
)
def test_unfair_lines_are_caught(
    owner: type, name: str, mutant: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, mutant)
    with pytest.raises(AssertionError):
        for seed in range(200):
            Fairness(random.Random(seed), (1, 2, 30, 100)).play(300)
