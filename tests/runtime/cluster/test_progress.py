"""How far a deployment is: replicas without a host hold nobody up, and a failure has the name of its cause."""

from __future__ import annotations

import pytest
from expertflow.runtime.cluster.progress import Deployed, deployed_of, first_error

FRONT = {"RUNNING": 1}


@pytest.mark.parametrize(
    ("engines", "front", "wanted", "hosts", "ready"),
    [
        ({"RUNNING": 2}, FRONT, 2, 2, True),
        ({"RUNNING": 1, "STARTING": 1}, FRONT, 2, 1, True),
        ({"RUNNING": 1, "STARTING": 1}, FRONT, 2, 2, False),
        ({"RUNNING": 1, "STARTING": 1}, FRONT, 2, None, False),
        ({"RUNNING": 1, "STOPPING": 1}, FRONT, 1, 2, False),
        ({"RUNNING": 1}, {"STARTING": 1}, 1, 1, False),
        ({"STARTING": 1}, FRONT, 1, 0, False),
        ({}, {}, 1, 1, False),
    ],
)
def test_a_cluster_is_ready_when_all_replicas_with_a_host_serve(
    engines: dict[str, int], front: dict[str, int], wanted: int, hosts: int | None, ready: bool
) -> None:
    assert deployed_of({"Engines": engines, "Front": front}, wanted, hosts).ready is ready


def test_replicas_without_a_host_are_counted() -> None:
    assert Deployed(running=1, wanted=3, ready=True).homeless == 2
    assert Deployed(running=2, wanted=1, ready=True).homeless == 0


def test_the_error_of_a_traceback_is_found() -> None:
    messages = ["", "Failed to update:\nTraceback (most recent call last):\n  File x\nBudgetError: needs 4 slots\nmore"]
    assert first_error(messages) == "BudgetError: needs 4 slots"
    assert first_error(["it did not work"]) == "it did not work"
    assert first_error([]) == "nothing is known"
