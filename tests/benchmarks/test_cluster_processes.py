"""Processes of Ray are found by their command lines; the ones here only look like Ray's."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from expertflow.benchmarks.cluster.processes import REPLICA, ray_processes, replica_processes

DEPLOYMENT = "Looks"
"""No deployment of ours: a real one may run beside the tests."""


@contextmanager
def process_called(words: str) -> Iterator[int]:
    """Yield the id of a process that sleeps under this name."""
    with subprocess.Popen([words, "600"], executable="/bin/sleep") as process:
        try:
            yield process.pid
        finally:
            process.kill()


def test_replicas_of_a_deployment_are_found_the_oldest_first() -> None:
    with ExitStack() as stack:
        names = [f"{REPLICA}{DEPLOYMENT}#1", f"{REPLICA}Other#2", f"{REPLICA}{DEPLOYMENT}#3"]
        first, other, last = [stack.enter_context(process_called(name)) for name in names]
        assert replica_processes(DEPLOYMENT) in ([first, last], [last, first])  # the clock may not tell them apart
        assert replica_processes("Other") == [other]
    assert not replica_processes(DEPLOYMENT)


def test_what_belongs_to_ray_itself_is_told_by_its_kind() -> None:
    with process_called("/opt/ray/core/gcs_server") as server, process_called("ray::Looks.method") as worker:
        kinds = ray_processes()
        assert server in kinds["gcs_server"] and worker in kinds["Looks"]
