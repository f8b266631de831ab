"""A connection between two stages that breaks under load costs a pause, and no token changes (R8, I4)."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from expertflow import Client, Config, Supervisor
from expertflow.ipc.transport.addresses import Party, pair_address
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.system.awaiting import await_tokens
from expertflow.tests.system.references import Reference, random_prompts
from expertflow.tests.system.test_hangs import await_restarts

TOKENS = 100
PIDFD_GETFD = 438
"""Number of this system call, which Python has no function for, on every architecture that Linux has today."""


@contextmanager
def descriptors_of(pid: int) -> Iterator[list[socket.socket]]:
    """Copies of the Unix sockets of another process, by which they can be shut down."""
    system = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    names = [entry.name for entry in Path(f"/proc/{pid}/fd").iterdir() if "socket:" in os.readlink(entry)]
    copies = [descriptor for name in names if (descriptor := system.syscall(PIDFD_GETFD, process, int(name), 0)) >= 0]
    os.close(process)
    if not copies:
        pytest.skip("this system does not let a process copy descriptors of its children (pidfd_getfd)")
    sockets = [socket.socket(fileno=descriptor) for descriptor in copies]
    yield [each for each in sockets if each.family == socket.AF_UNIX]
    for each in sockets:
        each.close()


def cut(run_dir: str, connected: str, bound: str, bound_pid: int) -> None:
    """Break the connection of the first start of both stages at the end that bound the address."""
    path = pair_address(run_dir, Party(connected, 1), Party(bound, 1)).removeprefix("ipc://")
    with descriptors_of(bound_pid) as sockets:
        listens = {each: each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for each in sockets}
        [end] = [each for each in sockets if each.getsockname() == path and not listens[each]]
        end.shutdown(socket.SHUT_RDWR)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("connected", "bound"),
    [
        ("compute", "loader"),
        pytest.param("compute", "scheduler", marks=pytest.mark.slow),
        pytest.param("loader", "predictor", marks=pytest.mark.slow),
        pytest.param("predictor", "scheduler", marks=pytest.mark.slow),
    ],
)
def test_a_connection_that_breaks_replaces_the_stage_that_connected(
    tmp_path: Path, connected: str, bound: str
) -> None:
    """Compute hears of it in the middle of a step, where no row may be blamed for it."""
    save_tiny("olmoe", tmp_path)
    prompts = random_prompts(4, VOCABULARY, seed=5)
    with Supervisor(Config.load(model=tmp_path, expert_memory="25%")) as engine, Client(engine.address) as client:
        batch = client.submit(prompts, max_new_tokens=TOKENS, eos_ids=[])
        await_tokens(batch, 20)
        cut(engine.address, connected, bound, client.stats().stages[bound].pid)
        done = batch.results(timeout_s=120)
        restarts = await_restarts(client)
    assert {name: count for name, count in restarts.items() if count} == {connected: 1}
    reference = Reference(tmp_path)
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, TOKENS) for prompt in prompts]
