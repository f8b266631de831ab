"""A forked stage differs from one that was started afresh in its imports alone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from expertflow.runtime.engine.children import start_python
from expertflow.tests.forking import forks
from expertflow.tests.forking.forks import Fork, ForkServer, StageForks
from expertflow.tests.forking.server import Order

TELLING = "expertflow.tests.forking.telling"
VARIABLES = {"PATH": "/bin", "MARK": "ü", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """A server that has imported one module of ours."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "imported_before.py").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        server = ForkServer.start(["imported_before"])
    yield server
    server.close()


def start(server: ForkServer | None, code: int, folder: Path) -> tuple[dict[str, Any], int, int]:
    """Return what a process tells that is forked, or started afresh; its exit code and its pid."""
    reads, writes = os.pipe()
    os.write(writes, b"through a descriptor")
    with (folder / "out").open("wb") as out:
        words = [str(code), str(reads)]
        if server:
            order = Order(TELLING, words, VARIABLES, str(folder), [0, 1, 2, reads])
            with open(os.devnull, "rb") as nothing:
                process: Any = Fork(server.fork(order, [nothing.fileno(), out.fileno(), out.fileno(), reads]), words)
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                process = start_python(["-P", "-m", TELLING, *words], VARIABLES, out.fileno(), [reads])
        ended = process.wait(timeout=60)
    os.close(reads)
    os.close(writes)
    return json.loads((folder / "out").read_text().splitlines()[0]), ended, process.pid


@pytest.mark.parametrize("code", [0, 3, -9])
def test_a_fork_has_what_a_new_process_has(server: ForkServer, tmp_path: Path, code: int) -> None:
    forked, ended, pid = start(server, code, tmp_path)
    afresh, other_end, other_pid = start(None, code, tmp_path)
    assert ended == other_end == code
    assert forked.pop("imported") and not afresh.pop("imported")
    assert forked.pop("server") is afresh.pop("server") is False
    assert (forked.pop("group"), afresh.pop("group")) == (pid, other_pid)
    for told in (forked, afresh):
        told["environment"].pop("LC_CTYPE", None)  # of the interpreter's own start
    assert forked == afresh and forked["parent"] == os.getpid() and forked["stdin"] == os.devnull


def test_a_fork_that_lives_can_be_ended(server: ForkServer, tmp_path: Path) -> None:
    reads, writes = os.pipe()
    with open(os.devnull, "r+b") as nothing:
        order = Order(TELLING, ["0", str(reads)], VARIABLES, str(tmp_path), [0, 1, 2, reads])
        pid = server.fork(order, [*[nothing.fileno()] * 3, reads])
    fork = Fork(pid, [])
    assert fork.poll() is None
    fork.kill()
    assert fork.wait(timeout=60) == -9
    os.close(reads)
    os.close(writes)


def test_only_workers_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage of another module is started afresh, and each one where the environment or new processes are tested."""
    started: list[str] = []
    monkeypatch.setattr(forks, "REAL_START", lambda arguments, *rest: started.append(arguments[2]))
    stages = StageForks()
    stages.start(("-P", "-m", TELLING), {}, 1, [])
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", "")
        stages.start(("-P", "-m", "expertflow.workers.loader"), {}, 1, [])
    stages.enabled = False
    stages.start(("-P", "-m", "expertflow.workers.compute"), {}, 1, [])
    assert started == [TELLING, "expertflow.workers.loader", "expertflow.workers.compute"] and not stages.pids
