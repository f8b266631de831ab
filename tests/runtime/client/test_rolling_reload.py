"""A reload of several engines, one after the other: all of them change, or none stays changed."""

from __future__ import annotations

from functools import partial

import pytest
from expertflow.errors import BudgetError, EngineError, ExpertFlowError
from expertflow.runtime.client.rolling_reload import Changes, Member, reload_in_turn

CAUSE = BudgetError("holds no expert", "expert_memory", "Give more")


class Engines:
    """Engines in memory; `failures`: the errors of an engine's next reloads, None for one that goes well."""

    def __init__(self, **failures: list[ExpertFlowError | None]) -> None:
        self.policy = {"one": "lru", "two": "lfu", "three": "lru"}
        self.order: list[str] = []
        self._failures = failures

    def reload(self, policy: str) -> None:
        members = [Member(name, partial(self._change, name)) for name in self.policy]
        reload_in_turn(members, {"policy": policy})

    def _change(self, name: str, changes: Changes) -> Changes:
        self.order.append(name)
        if (failures := self._failures.get(name)) and (failure := failures.pop(0)):
            raise failure
        previous: Changes = {"policy": self.policy[name]}
        self.policy[name] = str(changes["policy"])
        return previous


def test_all_engines_change_in_their_order() -> None:
    engines = Engines()
    engines.reload("random")
    assert engines.order == ["one", "two", "three"] and set(engines.policy.values()) == {"random"}


def test_an_engine_that_refuses_is_named_and_the_others_get_their_own_values_back() -> None:
    """The last one first, so that a refusal leaves as few changed as there can be at any moment."""
    engines = Engines(three=[CAUSE])
    with pytest.raises(BudgetError) as caught:
        engines.reload("random")
    assert engines.policy == {"one": "lru", "two": "lfu", "three": "lru"}
    assert engines.order == ["one", "two", "three", "two", "one"]
    assert caught.value.what == CAUSE.what and caught.value.where == "expert_memory of three"
    told = "Give more. two has its earlier settings again; one has its earlier settings again"
    assert caught.value.remedy == told


def test_the_first_refusal_leaves_the_others_alone() -> None:
    engines = Engines(one=[EngineError("the engine is draining already")])
    with pytest.raises(EngineError, match="^one: the engine is draining already. No engine of the group has changed$"):
        engines.reload("random")
    assert engines.order == ["one"]


def test_an_engine_that_cannot_be_changed_back_is_named_too() -> None:
    engines = Engines(one=[None, EngineError("was killed", "stage loader")], three=[CAUSE])
    with pytest.raises(BudgetError) as caught:
        engines.reload("random")
    assert engines.policy == {"one": "random", "two": "lfu", "three": "lru"}
    kept = "one keeps the new settings, as it could not be changed back: stage loader was killed"
    assert caught.value.remedy == f"Give more. two has its earlier settings again; {kept}"
