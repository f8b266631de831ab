"""What most steps use in the first layer is fetched before the next step is predicted, and only then."""

from __future__ import annotations

import pytest
from expertflow.ipc.messages import Miss, ResidentTable
from expertflow.tests.loader.test_ledger import LooseLedger, experts_of, plan_of, used_of
from expertflow.workers.loader.policies import Policy, make_policy

LAYERS, EXPERTS, TOP_K = 4, 8, 2
USUAL, STEPS = [0, 1], 8


def ledger_after_steps(policy: Policy | None = None) -> LooseLedger:
    """A ledger that holds nothing, after steps that all used the same experts."""
    ledger = LooseLedger(8, LAYERS, EXPERTS, TOP_K, policy, fills_in_flight=3)
    ledger.handle(ResidentTable({}))
    for step in range(STEPS):
        ledger.handle(used_of(step, USUAL))
    return ledger


def test_experts_that_most_steps_use_are_fetched_for_the_first_layer_of_the_next_step() -> None:
    ledger = ledger_after_steps()
    assert experts_of(ledger.handle(plan_of(STEPS, {(3, 5): 255}))) == [(3, 5)], "this step's prediction goes first"
    assert experts_of(ledger.handle(Miss(STEPS, 3, []))) == [(0, expert) for expert in USUAL]


def test_a_prediction_of_the_next_step_is_believed_instead() -> None:
    ledger = ledger_after_steps()
    ledger.handle(plan_of(STEPS, {}))
    assert experts_of(ledger.handle(plan_of(STEPS + 1, {(1, 6): 255}))) == [(1, 6)]
    assert experts_of(ledger.handle(Miss(STEPS, 3, []))) == []


@pytest.mark.parametrize("policy", ["popularity", "lru"])
def test_nothing_is_fetched_while_nothing_is_predicted(policy: str) -> None:
    """Baselines that load on demand stay what they are."""
    ledger = ledger_after_steps(make_policy(policy, LAYERS, EXPERTS, TOP_K))
    assert experts_of(ledger.handle(Miss(STEPS, 3, []))) == []
