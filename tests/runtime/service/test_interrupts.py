"""Ctrl-C pressed more than once: an orderly end is not broken off by accident, and can be left on purpose."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from typing import cast

import pytest
from expertflow.configs.schema import Config
from expertflow.runtime.engine.engine import Engine
from expertflow.runtime.engine.resources import Resources
from expertflow.runtime.service.interrupts import PATIENCE, interrupts_deferred, interrupts_once

pytestmark = pytest.mark.usefixtures("default_handler")


def test_the_first_raises_and_the_second_is_answered(capfd: pytest.CaptureFixture[str]) -> None:
    with interrupts_once():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == PATIENCE.decode()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_none_interrupts_an_end_that_has_begun(capfd: pytest.CaptureFixture[str]) -> None:
    with interrupts_deferred():
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == PATIENCE.decode()


def test_the_third_leaves_at_once() -> None:
    code = (
        "import signal; from expertflow.runtime.service.interrupts import interrupts_once\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with interrupts_once():\n"
        "    try: signal.raise_signal(signal.SIGINT)\n"
        "    except KeyboardInterrupt: pass\n"
        "    signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGINT); print('still here')"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "") and done.stderr == PATIENCE.decode() + "stopped\n"


def test_a_handler_of_the_caller_stays() -> None:
    """A notebook or a server has its own way to end."""
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    with interrupts_once(), interrupts_deferred():
        signal.raise_signal(signal.SIGINT)
    assert heard == [signal.SIGINT]


def test_another_thread_has_no_handlers() -> None:
    ran: list[bool] = []

    def work() -> None:
        with interrupts_once():
            ran.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [True]


class CountedResources:
    """Stands for the resources of an engine that never comes to use them."""

    def __init__(self) -> None:
        self.config, self.closed = Config(), 0

    def close(self) -> None:
        self.closed += 1


def test_the_start_of_an_engine_interrupted_before_its_thread_runs() -> None:
    """Whoever comes first, the thread or the join, closes the resources; the other leaves them alone."""
    resources = CountedResources()
    engine = Engine(cast(Resources, resources), [])
    assert engine.join(0) and engine.join(0)
    engine._run()
    assert resources.closed == 1 and engine.updates.empty()
