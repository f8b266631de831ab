"""A command that is forked differs from one that was started afresh in its imports alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from expertflow.tests.forking import commands
from expertflow.tests.forking.commands import forked_module
from expertflow.tests.forking.forks import ForkServer, StageForks
from expertflow.tests.forking.starting import ignore_user_signals
from expertflow.tests.runtime.fakes import wait_until

TELLING = "expertflow.tests.forking.telling"
STARTING = "expertflow.tests.forking.starting"
WORDS = [sys.executable, "-P", "-m"]


@pytest.fixture(scope="module")
def forks(stage_forks: StageForks) -> Iterator[None]:
    """Forks of a server that has imported one module of ours, in place of the session's."""
    server = ForkServer.start(["expertflow.tests.forking.forks"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "FORKED", frozenset({TELLING, STARTING}))
        patch.setattr(commands, "COMMAND", STARTING)
        undo = StageForks(server).replace_starts()
        yield
        undo()
    server.close()


def test_only_what_is_known_is_forked() -> None:
    behind = [*WORDS, "expertflow.ipc.stage.run_with_parent", "1", "expertflow.runtime.verify", "folder"]
    assert forked_module(behind) == "expertflow.runtime.verify"
    assert forked_module([*WORDS, "expertflow", "top"]) == "expertflow"
    for words in ([*WORDS, "expertflow.runtime.http"], [sys.executable, "-c", "pass"], "expertflow top", ["sh"]):
        assert forked_module(words) == ""


def told_by(popen: type[subprocess.Popen[Any]], code: int, folder: Path) -> tuple[dict[str, Any], bytes, int]:
    """Return what a process tells, what it wrote to stderr, and its exit code."""
    reads, writes = os.pipe()
    os.write(writes, b"through a descriptor")
    words = [*WORDS, TELLING, str(code), str(reads)]
    pipe = subprocess.PIPE
    process = popen(words, stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL, pass_fds=[reads], cwd=folder,
                    env={**os.environ, "MARK": "ü"}, preexec_fn=ignore_user_signals)  # fmt: skip
    out, errors = process.communicate(timeout=60)
    os.close(reads)
    os.close(writes)
    return json.loads(out), errors, process.returncode


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("code", [0, 3, -9])
def test_a_forked_command_has_what_a_new_process_has(code: int, tmp_path: Path) -> None:
    """Pipes, descriptors, folder, environment, process group and what is called before it runs."""
    real = next(each for each in subprocess.Popen.__mro__ if each.__module__ == "subprocess")
    forked, afresh = told_by(subprocess.Popen, code, tmp_path), told_by(real, code, tmp_path)
    assert forked[0].pop("server") and not afresh[0].pop("server")
    assert forked[0].pop("group") == afresh[0].pop("group") == os.getpgid(0)
    for told in (forked[0], afresh[0]):
        told["environment"].pop("LC_CTYPE", None)  # of the interpreter's own start
    assert forked == afresh and forked[0]["signals"] and forked[2] == code


@pytest.mark.usefixtures("forks")
def test_what_a_command_starts_is_its_child_and_ends_with_it(tmp_path: Path) -> None:
    """Its server is a fork of it; when it is killed, that ends as well."""
    with subprocess.Popen([*WORDS, STARTING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        family = psutil.Process(process.pid).children()
        process.kill()
        assert process.stdout.read() == "", "nothing else holds its output open"
    assert told["parent"] == process.pid and told["server"] and len(family) == 1
    wait_until(lambda: not psutil.pid_exists(family[0].pid) or family[0].status() == psutil.STATUS_ZOMBIE)
