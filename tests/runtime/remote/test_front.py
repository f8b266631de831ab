"""The proxy's process as the command has it: address, restarts, and its end with the command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from expertflow import Client
from expertflow.configs.schema import Config
from expertflow.errors import UsageError
from expertflow.ipc.stage.logs import LogSpec
from expertflow.runtime.command_line.registry import parse
from expertflow.runtime.remote.__main__ import MAX_DATA_BYTES
from expertflow.runtime.remote.front import RemoteFront
from expertflow.runtime.remote.keys import new_keys
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.scheduler.fake_engine import FakeEngine

SCRIPT = """
import sys, time
from pathlib import Path
from expertflow.ipc.stage.logs import LogSpec
from expertflow.runtime.remote.front import RemoteFront
with RemoteFront("tcp://127.0.0.1:0", Path(sys.argv[1]), LogSpec()) as front:
    front.serve(sys.argv[2])
    print(front.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    new_keys(tmp_path)
    return tmp_path


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    with FakeEngine(tmp_path, Config(kv_memory="100KB", batch_size=4)) as engine:
        yield engine


@pytest.fixture
def front(engine: FakeEngine, keys: Path) -> Iterator[RemoteFront]:
    with RemoteFront("tcp://127.0.0.1:0", keys / "server", LogSpec()) as front:
        front.serve(engine.address)
        yield front


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_killed_proxy_is_a_pause(front: RemoteFront, engine: FakeEngine, keys: Path) -> None:
    """Its successor has the port, clients connect again and go on where they were."""
    with Client(engine.address) as local:
        [expected] = local.generate([[1, 2]], 40, eos_ids=[], seed=1)
    with Client(front.address, keys=keys / "client") as client:
        engine.paused.set()
        batch = client.submit([[1, 2]], 40, eos_ids=[], seed=1)
        first = front.pid or 0
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: front.check() or front.pid != first)
        engine.paused.clear()
        [done] = batch.results(timeout_s=60)
    assert done.token_ids == expected.token_ids


def test_stopping_closes_the_port_and_the_process(front: RemoteFront) -> None:
    port = int(front.address.rpartition(":")[2])
    pid = front.pid or 0
    front.stop()
    front.stop()
    assert not is_alive(pid)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)


def test_the_proxy_ends_with_its_command(engine: FakeEngine, keys: Path) -> None:
    words = [sys.executable, "-P", "-c", SCRIPT, str(keys / "server"), engine.address]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as script:
        assert script.stdout is not None
        pid = int(script.stdout.readline())
        script.kill()
    wait_until(lambda: not is_alive(pid))


def test_no_secret_stands_on_its_command_line(front: RemoteFront, keys: Path) -> None:
    secret = (keys / "server" / "server.key_secret").read_text().partition("secret-key")[2].strip(' ="\n').encode()
    for name in ("cmdline", "environ"):
        assert secret not in Path(f"/proc/{front.pid}/{name}").read_bytes()


def test_its_memory_is_bounded(front: RemoteFront) -> None:
    """Where a client with a key finds a way to fill it, the proxy dies and not the machine."""
    limits = Path(f"/proc/{front.pid}/limits")
    wanted = ["Max", "data", "size", *[str(MAX_DATA_BYTES)] * 2, "bytes"]
    wait_until(lambda: wanted in [line.split() for line in limits.read_text().splitlines()])


def test_a_port_in_use_is_refused_before_the_engine_starts(front: RemoteFront, keys: Path) -> None:
    with pytest.raises(UsageError, match="cannot listen"):
        RemoteFront(front.address, keys / "server", LogSpec())
    with pytest.raises(UsageError, match=r"must be \[HOST:\]PORT"):
        RemoteFront("tcp://nowhere", keys / "server", LogSpec())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--address", "tcp://127.0.0.1:0"], "needs keys"),
        (["--keys", "keys"], "are for an address over TCP"),
        (["--address", "tcp://127.0.0.1:0", "--device", "cuda:0,cuda:1", "--keys", "keys"], "one device"),
    ],
)
def test_serve_refuses_before_anything_starts(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        parse(["serve", "--model", "nowhere", *words]).run()
    assert refused.value.remedy
