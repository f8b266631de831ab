"""`expertflow top` in a real terminal, at three widths."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from expertflow.runtime.engine.supervisor import Supervisor
from expertflow.tests.runtime.fakes import fake_engine, wait_until

SEEN_S = 2.0
"""Time within which the death of a stage is on the screen."""
KILLS = 3
"""Most deaths that are timed: other tests may have the cores while one is shown."""


def plain_environment() -> dict[str, str]:
    """Without the size of a terminal that is not ours."""
    return {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}


class Terminal:
    """A tmux server of its own with one window."""

    def __init__(self, folder: Path, width: int, command: str, **environment: str) -> None:
        self._socket = str(folder / f"tmux{width}")
        values = [word for name, value in environment.items() for word in ("-e", f"{name}={value}")]
        self._call("-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", "40", *values, command)

    def _call(self, *words: str) -> str:
        words = ("tmux", "-u", "-S", self._socket, *words)
        return subprocess.run(words, capture_output=True, text=True, check=False, env=plain_environment()).stdout

    def lines(self, *options: str) -> list[str]:
        """The lines as tmux has them; with -e, with the escape codes of their styles."""
        return self._call("capture-pane", "-p", *options).splitlines()

    def press(self, *keys: str) -> None:
        self._call("send-keys", *keys)

    @property
    def text(self) -> str:
        return "\n".join(self.lines())

    @property
    def is_open(self) -> bool:
        return bool(self._call("list-sessions"))

    def close(self) -> None:
        self._call("kill-server")


@pytest.fixture(scope="module")
def engine(runtime_base: Path) -> Iterator[Supervisor]:
    with fake_engine(behaviour={"compute": "slow again"}) as engine:
        yield engine


@pytest.fixture(params=[60, 80, 200])
def terminal(request: pytest.FixtureRequest, tmp_path: Path, engine: Supervisor) -> Iterator[Terminal]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed: apt-get install tmux")
    wait_until(lambda: not engine.snapshot().down)
    words = [sys.executable, "-P", "-m", "expertflow", "top", "--address", engine.address]
    no_color = {"NO_COLOR": "1"} if request.param == 80 else {}
    path = os.environ.get("PYTHONPATH", "")
    terminal = Terminal(tmp_path, request.param, shlex.join(words), LANG="C.UTF-8", PYTHONPATH=path, **no_color)
    try:
        wait_until(lambda: "[overview]" in terminal.text and "scheduler" in terminal.text)
        yield terminal
    finally:
        terminal.close()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """The engine is that of the module; tmux is ended by its fixture."""


def seconds_until_seen(engine: Supervisor, terminal: Terminal) -> float:
    """Kill compute once its last death is off the screen; return how long it takes until this one is on it."""
    wait_until(lambda: "compute has ended" not in terminal.text)
    killed_s = time.monotonic()
    engine.kill("compute")
    wait_until(lambda: "compute has ended" in terminal.text)
    return time.monotonic() - killed_s


def test_it_lives_in_a_terminal(terminal: Terminal, engine: Supervisor, request: pytest.FixtureRequest) -> None:
    """No line wraps, keys turn pages, a killed stage is seen within two seconds, and q leaves nothing running."""
    width = request.node.callspec.params["terminal"]
    lines = terminal.lines()
    assert [line.split()[0] for line in lines[3:8]] == ["compute", "loader", "predictor", "scheduler", "supervisor"]
    assert ("memory" in lines[2].split()) == (width == 200)
    styled = "\x1b[" in "\n".join(terminal.lines("-e"))
    assert styled == (width != 80), "styles are there, unless NO_COLOR is set"
    terminal.press("Tab", "Tab")
    wait_until(lambda: "[requests]" in terminal.text and "No request is open" in terminal.text)
    terminal.press("Left", "Left")
    wait_until(lambda: "[overview]" in terminal.text)
    assert any(seconds_until_seen(engine, terminal) < SEEN_S for _ in range(KILLS))
    terminal.press("q")
    wait_until(lambda: not terminal.is_open)


@pytest.mark.parametrize(("before", "after"), [("TERM=dumb", ""), ("", "<&-")])
def test_poor_terminals_show_figures(before: str, after: str, tmp_path: Path, engine: Supervisor) -> None:
    """One that cannot be drawn on gets plain tables; where stdin is closed no key is heard."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed: apt-get install tmux")
    words = [sys.executable, "-P", "-m", "expertflow", "top", "--interval-s", "0.2", "--address", engine.address]
    path = os.environ.get("PYTHONPATH", "")
    command = f"{before} {shlex.join(words)} {after}; sleep 60"
    terminal = Terminal(tmp_path, 80, command, LANG="C.UTF-8", PYTHONPATH=path)
    try:
        wait_until(lambda: "scheduler" in terminal.text)
        assert "error" not in terminal.text
        assert ("q quits" in terminal.text) == (not before)
    finally:
        terminal.close()
