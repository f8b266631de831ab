"""Watching an engine from outside: `top`, and the kill of the demonstration."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from expertflow.errors import EngineError, UsageError
from expertflow.ipc.shared.rundir import RunDir
from expertflow.runtime.client.watching import Watcher, find_engine, living_engines, snapshot_after
from expertflow.runtime.commands.running.top import Top
from expertflow.runtime.monitor.readings import read_pair
from expertflow.runtime.monitor.tables import reading_view, result_console
from expertflow.tests.runtime.fakes import fake_engine, wait_until


@pytest.fixture(autouse=True)
def only_engines_of_this_test(monkeypatch: pytest.MonkeyPatch, runtime_base: Path) -> None:
    """Engines of other sessions on this machine are none of ours."""
    monkeypatch.setattr("expertflow.runtime.client.watching.COMMON_BASE", runtime_base)


def test_a_watcher_sees_stages_and_kills_one() -> None:
    """The kill must reach the stage it names, and the watcher must go on seeing the engine."""
    with fake_engine(("compute", "loader")) as engine, Watcher(engine.address) as watcher:
        wait_until(lambda: set(watcher.snapshot().stages) == {"compute", "loader"})
        watcher.kill("compute")
        wait_until(lambda: watcher.snapshot().restarts == {"compute": 1, "loader": 0})


def test_a_watcher_of_nothing() -> None:
    with pytest.raises(EngineError, match="no engine"):
        Watcher("/no/such/place")


def test_a_watcher_whose_engine_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must say so, not wait for an answer."""
    with fake_engine(("compute",)) as engine:
        watcher = Watcher(engine.address)
    with watcher, pytest.raises(EngineError, match="the engine has ended"):
        watcher.snapshot()


def test_top_shows_the_only_engine_once(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_engine() as engine:
        assert find_engine("") == engine.address
        assert Top(once=True, json=True, interval_s=0.1).run() == 0
        assert Top(once=True, interval_s=0.1).run() == 0
    shown = capsys.readouterr().out
    first, _, table = shown.partition("\n")
    names = [line["stage"] for line in json.loads(first)["stages"]]
    assert names == ["compute", "loader", "predictor", "scheduler", "supervisor"]
    assert "throughput" in table and "\x1b" not in table


@pytest.mark.slow
def test_top_without_an_engine_or_with_two() -> None:
    """Choosing one of two silently would show the wrong one."""
    with pytest.raises(UsageError, match="no engine is running"):
        Top(once=True).run()
    with fake_engine(("compute",)) as one, fake_engine(("loader",)) as other:
        with pytest.raises(UsageError, match="2 engines") as refused:
            Top(once=True).run()
        assert one.address in refused.value.remedy and other.address in refused.value.remedy


def test_an_abandoned_run_directory_is_no_engine(runtime_base: Path) -> None:
    """What a killed engine left behind would be offered to the user."""
    directory = RunDir.create(runtime_base)
    assert living_engines() == [directory.path]
    os.close(directory._lock_fd)
    directory._lock_fd = -1
    assert living_engines() == []
    directory.path.rmdir()


def test_intervals_that_make_no_rate() -> None:
    for interval_s in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="from 0.1 to"):
            Top(interval_s=interval_s).run()


def test_a_fresh_snapshot_is_waited_for() -> None:
    """Stages publish once a second: the last second of a run would be missing from its figures."""
    with fake_engine(("compute",)) as engine:
        wait_until(lambda: engine.snapshot().stages)
        before = engine.snapshot()
        after = snapshot_after(engine.snapshot, before.time_ns + 1)
        assert after.stages["compute"].time_ns > before.time_ns
        stale = snapshot_after(engine.snapshot, 2**62, timeout_s=0.1)
    assert stale.stages["compute"].time_ns < 2**62
    result_console().print(reading_view(read_pair(before, after)))
    assert msgspec.json.encode(read_pair(before, after))


def test_a_watcher_gets_every_span_once() -> None:
    """What is returned again would be counted again by whoever explains steps."""
    with fake_engine(("compute", "loader")) as engine, Watcher(engine.address) as watcher:
        assert watcher.activity()[""].spans == []
        numbers: list[int] = []
        wait_until(lambda: len(numbers) >= 4 or numbers.extend(each.number for each in watcher.activity()[""].spans))
        assert numbers == sorted(set(numbers))
