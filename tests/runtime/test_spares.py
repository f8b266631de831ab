"""A spare process takes the place of a compute that dies, and never outlives the engine (I6)."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from expertflow.runtime.engine import prestart as spares
from expertflow.runtime.engine.supervisor import Supervisor
from expertflow.tests.runtime.fakes import fake_engine, wait_until

PAIR = ("compute", "loader")


def waiting(engine: Supervisor) -> list[int]:
    """Processes of stages that are none yet."""
    at_work = {facts["pid"] for facts in engine.snapshot().facts.values() if "pid" in facts}
    children = [child for child in psutil.Process().children() if any("fake_stage" in word for word in child.cmdline())]
    return [child.pid for child in children if child.pid not in at_work]


def one_waiting(engine: Supervisor) -> int:
    wait_until(lambda: len(waiting(engine)) == 1)
    return waiting(engine)[0]


def test_the_spare_takes_the_place_of_a_dead_compute_and_another_follows():
    with fake_engine(PAIR, spare_compute=True) as engine:
        used: list[int] = []
        while len(used) < 2:
            spare = one_waiting(engine)
            used.append(spare)
            wait_until(lambda: engine.snapshot().pss_bytes.get("compute spare"))
            engine.kill("compute")
            wait_until(lambda spare=spare: engine.snapshot().facts["compute"]["pid"] == spare)
            facts = engine.snapshot().facts["compute"]
            assert facts["prepared"] == "nowhere"
        assert one_waiting(engine) not in used
        assert engine.snapshot().restarts["compute"] == 2
        assert engine.failure is None


def test_a_spare_that_has_died_is_no_death_of_compute(caplog: pytest.LogCaptureFixture):
    """It may be the first that a machine short of memory takes; compute is then started as without one."""
    with fake_engine(PAIR, spare_compute=True, restart_limit=1) as engine:
        spare = one_waiting(engine)
        os.kill(spare, signal.SIGKILL)
        wait_until(lambda: psutil.Process(spare).status() == psutil.STATUS_ZOMBIE)
        before = engine.snapshot().facts["compute"]["pid"]
        engine.kill("compute")
        wait_until(lambda: engine.snapshot().facts["compute"]["pid"] != before)
        assert engine.snapshot().restarts["compute"] == 1
    assert "the spare of stage compute: was killed with SIGKILL" in caplog.text


def test_a_death_before_the_spare_is_ready_uses_it_all_the_same():
    """It goes on importing, and is told its spec meanwhile."""
    with fake_engine(PAIR, {"compute": "slow to prepare"}, spare_compute=True) as engine:
        spare = one_waiting(engine)
        engine.kill("compute")
        wait_until(lambda: engine.snapshot().facts["compute"]["pid"] == spare)


def test_without_memory_there_is_none(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(spares, "available_bytes", lambda: 10**6)
    with fake_engine(PAIR, spare_compute=True) as engine:
        wait_until(lambda: "no spare of stage compute: it may take 450.0 MB, and 1.0 MB is available" in caplog.text)
        assert not waiting(engine)


def test_nobody_has_one_who_does_not_ask():
    with fake_engine(PAIR) as engine:
        before = engine.snapshot().facts["compute"]["pid"]
        engine.kill("compute")
        wait_until(lambda: engine.snapshot().facts["compute"]["pid"] != before)
        assert not waiting(engine)
