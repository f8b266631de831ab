"""Experts that share a call: their slots stay pinned until it is done; while others are missing a group is small."""

from __future__ import annotations

from typing import Any

from expertflow.ipc.messages import Filled, Message, Recall, Released
from expertflow.workers.compute.experts.holdings import Holdings
from expertflow.workers.compute.experts.residency import MAX_GROUP, Residency

EXPERTS = 20


class Views:
    """Names instead of weights."""

    experts = EXPERTS

    def weights(self, slot: int, layer: int, expert: int) -> dict[str, Any]:
        return {"slot": slot}


class World:
    """A residency whose loader says what a test puts into `inbox`; slot e holds expert e of layer 0."""

    def __init__(self, held: int) -> None:
        self.sent: list[Message] = []
        self.inbox: list[Any] = []
        holdings = Holdings(EXPERTS, 1, EXPERTS)
        views: Any = Views()
        self.residency = Residency(holdings, views, self.sent.append, self._take, self._take, lambda: 0)
        for expert in range(held):
            self.residency.receive(Filled(expert, 0, expert))
        self.residency.begin_step(0)
        self.residency.begin(0, list(range(EXPERTS)))

    def _take(self) -> list[Any]:
        taken, self.inbox = self.inbox, []
        return taken

    def released(self) -> list[int]:
        return [slot for message in self.sent if isinstance(message, Released) for slot in message.slots]


def numbers(group: list[tuple[int, Any]]) -> list[int]:
    return [expert for expert, _ in group]


def test_all_that_are_held_form_one_group_if_none_is_missing() -> None:
    world = World(EXPERTS)
    groups = [numbers(group) for group in world.residency.stream(set(range(EXPERTS)))]
    assert groups == [list(range(EXPERTS))]


def test_others_are_groups_of_their_own() -> None:
    world = World(EXPERTS)
    groups = [numbers(group) for group in world.residency.stream({1, 3, 19})]
    assert groups == [[0], [1, 3, 19], [2], *([expert] for expert in range(4, 19))]
    assert [numbers(group) for group in World(EXPERTS).residency.stream()] == [[expert] for expert in range(EXPERTS)]


def test_a_slot_of_a_group_is_released_only_when_the_next_group_is_asked_for() -> None:
    """I3: the loader may write into it from then on."""
    world = World(EXPERTS)
    stream = iter(world.residency.stream(set(range(10))))
    assert numbers(next(stream)) == list(range(10))
    world.residency.receive(Recall([2, 7, 15], -1, -1))
    assert world.released() == [], "15 is pinned, too: it runs in this layer"
    assert numbers(next(stream)) == [10]
    assert world.released() == [2, 7]
    assert [numbers(group) for group in stream] == [[expert] for expert in range(11, EXPERTS)]
    assert world.released() == [2, 7, 15]


def test_while_experts_are_missing_groups_are_small_and_messages_are_handled_between() -> None:
    world = World(EXPERTS - 2)
    groups = []
    for group in world.residency.stream(set(range(EXPERTS))):
        groups.append(numbers(group))
        if len(groups) == 1:
            world.inbox = [Filled(18, 0, 18), Filled(19, 0, 19)]
    assert groups == [list(range(MAX_GROUP)), list(range(MAX_GROUP, EXPERTS))], "then nothing was missing any more"
