"""The server's process as the command has it: address, keys, restarts, and its end with the command."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from expertflow.errors import EngineError, UsageError
from expertflow.ipc.messages import Progress
from expertflow.runtime.http.front import HttpFront
from expertflow.runtime.http.options import HttpOptions, read_keys
from expertflow.runtime.http.spec import Limits, Loading, Serving, read_spec, read_update, to_line
from expertflow.runtime.service.listening import bind, is_loopback, read_address
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.scheduler.fake_engine import FakeEngine

SCRIPT = """
import sys, time
from expertflow.runtime.http.front import HttpFront
from expertflow.runtime.http.options import HttpOptions
with HttpFront(HttpOptions(host="127.0.0.1", port=0, names=["tiny"])) as front:
    print(front.pid, flush=True)
    time.sleep(60)
"""


def options(**more: Any) -> HttpOptions:
    return HttpOptions(host="127.0.0.1", port=0, names=["tiny"], limits=Limits(grace_s=0.2), **more)


@pytest.fixture
def front() -> Iterator[HttpFront]:
    with HttpFront(options(keys=["secret"])) as front:
        yield front


def ask(front: HttpFront, path: str, body: Any = None, key: str = "secret") -> tuple[int, Any]:
    host, port = front.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    return response.status, content


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_server_is_told_of_the_engine(front: HttpFront, engine: FakeEngine) -> None:
    front.on_progress(Progress("compute", "reading weights", 3, 4))
    wait_until(lambda: ask(front, "/ready")[1].get("percent") == 75.0)
    front.serve(engine.address)
    wait_until(lambda: ask(front, "/ready")[0] == 200)
    status, answer = ask(front, "/v1/completions", {"prompt": [5], "max_tokens": 2})
    assert status == 200 and answer["model"] == "tiny"
    assert ask(front, "/v1/models", key="other")[0] == 401


def test_keys_stand_on_no_command_line(front: HttpFront) -> None:
    assert b"secret" not in Path(f"/proc/{front.pid}/cmdline").read_bytes()
    assert b"secret" not in Path(f"/proc/{front.pid}/environ").read_bytes()


def test_a_killed_server_is_started_again(front: HttpFront, engine: FakeEngine) -> None:
    """At the same port, with what the last one knew; a client that connects meanwhile waits."""
    front.serve(engine.address)
    wait_until(lambda: ask(front, "/ready")[0] == 200)
    first = front.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: front.check() or front.pid != first)
    wait_until(lambda: ask(front, "/ready")[0] == 200)
    assert ask(front, "/v1/completions", {"prompt": [5], "max_tokens": 2})[0] == 200


def test_a_server_that_ends_again_and_again_is_given_up(front: HttpFront, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expertflow.runtime.http.front.MAX_RESTARTS", 1)
    first = front.pid or 0
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: front.check() or front.pid != first)
    os.kill(front.pid or 0, signal.SIGKILL)
    with pytest.raises(EngineError, match="SIGKILL.*again and again"):
        wait_until(lambda: front.check())


def test_stopping_closes_the_port_and_the_process(front: HttpFront) -> None:
    wait_until(lambda: ask(front, "/health")[0] == 200)
    host, port = front.url.removeprefix("http://").split(":")
    pid = front.pid or 0
    front.stop()
    front.stop()
    assert not is_alive(pid)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), 1)


def test_a_server_ends_with_its_command() -> None:
    """However that ends."""
    with subprocess.Popen([sys.executable, "-P", "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as script:
        assert script.stdout is not None
        pid = int(script.stdout.readline())
        time.sleep(0.3)
        script.kill()
    wait_until(lambda: not is_alive(pid))


def test_a_port_in_use_is_refused_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="cannot listen"):
            bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UsageError, match="cannot listen"):
        bind("no.such.host.invalid", 80)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expertflow.runtime.http.front.MODULES", ("starlette", "not_there"))
    with pytest.raises(UsageError, match="not_there") as caught:
        HttpFront(options())
    assert "expertflow-runtime[serve]" in caught.value.remedy


@pytest.mark.parametrize(
    "text,host,port",
    [("8000", "127.0.0.1", 8000), ("0.0.0.0:80", "0.0.0.0", 80), ("[::1]:0", "::1", 0), ("box:1", "box", 1)],
)
def test_addresses_are_read(text: str, host: str, port: int) -> None:
    assert read_address(text) == (host, port)


@pytest.mark.parametrize("text", ["", "x", ":80", "a:b", "1:", "70000", "-1", "127.0.0.1"])
def test_wrong_addresses_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"\[HOST:\]PORT"):
        read_address(text)


def test_only_the_loopback_is_open_without_a_key() -> None:
    assert is_loopback("127.0.0.2") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.com")
    assert HttpOptions(host="0.0.0.0", port=0, names=["m"]).is_open
    assert not HttpOptions(host="0.0.0.0", port=0, names=["m"], keys=["k"]).is_open
    assert not options().is_open


def test_keys_come_from_three_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# team\nb # Bob\n\na\n")
    monkeypatch.setenv("EXPERTFLOW_API_KEY", "c")
    assert read_keys(["a"], file) == ["a", "b", "c"]
    file.write_text("# none\n")
    for given, from_file in ((["a b"], None), (["é"], None), ([""], None), ([], file), ([], tmp_path / "missing")):
        with pytest.raises(UsageError):
            read_keys(given, from_file)


def test_lines_keep_what_they_say() -> None:
    spec = options(keys=["k"]).to_spec(7)
    assert read_spec(to_line(spec)) == spec
    for update in (Loading("a", 1, 2), Serving("/run/x")):
        assert read_update(to_line(update)) == update
