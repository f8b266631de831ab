"""What steps and moved rows cost."""

from __future__ import annotations

from expertflow.ipc.messages import Stepped
from expertflow.workers.scheduler.regrouping import REMEMBERED_EXCHANGES, REMEMBERED_STEPS, Costs


def stepped(busy_ns: int, experts: int = 10, moved_ns: int = 0) -> Stepped:
    return Stepped(
        number=1,
        unit=1,
        rows=[],
        tokens=[],
        busy_ns=busy_ns,
        stall_ns=0,
        kv_bytes=0,
        experts=experts,
        moved_ns=moved_ns,
    )


def test_before_anything_is_measured_everything_is_free() -> None:
    costs = Costs()
    assert (costs.step_ns, costs.expert_ns, costs.exchange_ns) == (0, 0, 0)


def test_a_step_that_was_held_up_does_not_count() -> None:
    """Another process had the machine."""
    costs = Costs()
    for busy_ns in (1000, 1000, 90_000, 1000, 1000):
        costs.add(stepped(busy_ns, moved_ns=busy_ns // 10), exchanged=True)
    assert (costs.step_ns, costs.expert_ns, costs.exchange_ns) == (1000, 100, 100)


def test_only_exchanges_tell_what_exchanges_cost() -> None:
    """Rows that leave for good are moved, too."""
    costs = Costs()
    costs.add(stepped(1000, moved_ns=500), exchanged=False)
    assert costs.exchange_ns == 0


def test_old_steps_are_forgotten() -> None:
    costs = Costs()
    for busy_ns in [10] * REMEMBERED_STEPS + [1000] * REMEMBERED_STEPS:
        costs.add(stepped(busy_ns), exchanged=False)
    assert costs.expert_ns == 100


def test_an_exchange_that_was_too_dear_is_tried_again_one_day() -> None:
    costs = Costs()
    for _ in range(REMEMBERED_EXCHANGES):
        costs.add(stepped(1000, moved_ns=5000), exchanged=True)
    for _ in range(REMEMBERED_EXCHANGES):
        assert costs.exchange_ns == 5000
        costs.drop_oldest_exchange()
    assert costs.exchange_ns == 0
    costs.drop_oldest_exchange()


def test_a_step_without_experts_divides_nothing() -> None:
    costs = Costs()
    costs.add(stepped(1000, experts=0), exchanged=False)
    assert costs.expert_ns == 1000
