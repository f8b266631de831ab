"""Run `expertflow serve --http` as a process of its own, end it, and look for what it left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
from expertflow.ipc.shared.rundir import sweep

START_S = 300.0
END_S = 90.0
"""Seconds that a busy machine may take to start an engine, and to end one."""
RUN_BASE = "XDG_RUNTIME_DIR"


class EngineProcess:
    """An engine with its HTTP server. `base` is a short folder of its own, `log` the file that its log goes to."""

    def __init__(self, words: list[str], base: Path, log: Path, program: tuple[str, ...] = ("expertflow",)) -> None:
        """Start it and wait until it is ready. Raises RuntimeError with the end of its log.

        `program` is the module that runs the command, and words of its own.
        """
        self._base, self._log = base, log
        self._shared_before = shared_memory()
        address_file = base / "address"
        command = [sys.executable, "-P", "-m", *program, "serve", *words]
        command += ["--http", "127.0.0.1:0", "--served-model-name", "model", "--address-file", str(address_file)]
        run_base = base / "run"
        run_base.mkdir(mode=0o700, exist_ok=True)
        environment = os.environ | {RUN_BASE: str(run_base), "COLUMNS": "500"}
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            wait_until(lambda: address_file.exists() and address_file.read_text().strip(), START_S, self.require_alive)
            wait_until(self._is_serving, START_S, self.require_alive)
        except BaseException:
            self.kill_all()
            raise
        self.address = address_file.read_text().strip()

    @property
    def port(self) -> int:
        """Return the port of the HTTP server."""
        return int((self._url() or ":0").rpartition(":")[2])

    def _is_serving(self) -> bool:
        """Return whether the HTTP server answers with the engine: it hears of the engine a moment after others do."""
        if (url := self._url()) is None:
            return False
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=START_S) as answer:
                return answer.status == 200
        except OSError:  # 503 is one
            return False

    def _url(self) -> str | None:
        found = re.search(r"HTTP: (http://\S+)/v1", self._log.read_text(errors="replace"))
        return found[1] if found else None

    def require_alive(self) -> None:
        """Raise RuntimeError, with the end of the log, if the engine has ended."""
        if (code := self.process.poll()) is not None:
            raise RuntimeError(f"the engine ended with {code}; its log ends:\n{self.log_tail()}")

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of the log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, abruptly: bool = False) -> list[str]:
        """End the engine by SIGTERM, or `abruptly` by SIGKILL; return what is wrong about the end or left behind.

        A run directory may stay behind a SIGKILL: the next start sweeps it, which is done here.
        """
        self.process.send_signal(signal.SIGKILL if abruptly else signal.SIGTERM)
        faults = self._await_end(0 if not abruptly else -signal.SIGKILL)
        faults += self._await_nothing("process", self._processes)
        if abruptly:
            sweep(self._base / "run")
        faults += self._await_nothing("in the run directory's folder", self._run_directories)
        faults += self._await_nothing("shared memory", lambda: sorted(shared_memory() - self._shared_before))
        self.kill_all()
        return faults

    def _await_end(self, expected: int) -> list[str]:
        try:
            code = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            return [f"the engine has not ended after {END_S:.0f} s"]
        return [] if code == expected else [f"the engine ended with {code}; its log ends:\n{self.log_tail()}"]

    def _await_nothing(self, what: str, look: Callable[[], list[str]]) -> list[str]:
        deadline_s = time.monotonic() + END_S
        while (left := look()) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        return [f"left behind, {what}: {each}" for each in left]

    def _processes(self) -> list[str]:
        """Return the processes that run with this engine's folder, however they are related to it."""
        mark = f"{RUN_BASE}={self._base / 'run'}".encode()
        return [f"{each.pid} {_command(each)}" for each in psutil.process_iter() if mark in _environment(each.pid)]

    def _run_directories(self) -> list[str]:
        return sorted(str(path) for path in (self._base / "run").rglob("*"))

    def kill_all(self) -> None:
        """Kill every process that this engine left, so that a failed round does not disturb the next."""
        for line in self._processes():
            psutil.Process(int(line.split()[0])).kill()
        self.process.wait()


def _environment(pid: int) -> list[bytes]:
    """Return the environment of a living process of ours; empty for others."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[-120:]
    except psutil.Error:
        return "(ended)"


def shared_memory() -> set[str]:
    """Return the names in /dev/shm that belong to this user and are named as ours."""
    return {name for name in os.listdir("/dev/shm") if "expertflow" in name}


def wait_until(condition: Callable[[], object], timeout_s: float, check: Callable[[], None]) -> None:
    """Poll until `condition`. Calls `check` in between; raises TimeoutError."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        check()
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"nothing came within {timeout_s:.0f} s")
        time.sleep(0.02)
