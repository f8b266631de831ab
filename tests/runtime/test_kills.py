"""SIGKILL at any moment, to the supervisor and to its stages (I6)."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from expertflow.ipc.shared.rundir import sweep
from expertflow.tests.runtime.fakes import STAGES, fake_engine, heard, wait_until

MARK = "EXPERTFLOW_TEST_MARK"
SCRIPT = Path(__file__).with_name("engine_script.py")
SLEEPER = "expertflow.tests.runtime.sleeper"


def marked_processes(mark: str) -> list[int]:
    """Living processes that carry this mark in their environment, whoever their parent is now."""
    needle = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if needle in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except (OSError, ProcessLookupError):
            continue
    return found


def start_script(mark: str, behaviour: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", str(SCRIPT), behaviour],
        env={**os.environ, MARK: mark},
        stdout=subprocess.PIPE,
        text=True,
    )


OTHER_DELAYS = [pytest.param(delay_s, marks=pytest.mark.slow) for delay_s in (0.5, 0.7, 0.8, 1.0)]


@pytest.mark.parametrize("delay_s", [0.2, 0.6, None, *OTHER_DELAYS])
def test_when_the_supervisor_is_killed_everything_ends(delay_s: float | None, runtime_base: Path):
    """Start-up included (None: once it runs): a child that does not watch its supervisor would live for ever."""
    mark = uuid.uuid4().hex
    with start_script(mark) as script:
        assert script.stdout is not None
        if delay_s is None:
            assert script.stdout.readline().strip()
            assert len(marked_processes(mark)) == 3
        else:
            time.sleep(delay_s)
        script.kill()
    wait_until(lambda: not marked_processes(mark))
    sweep(runtime_base)
    for unborn in runtime_base.glob(".expertflow-*"):  # killed in the moment between making and locking its directory
        unborn.rmdir()
    assert not list(runtime_base.iterdir()), "the next start does not sweep what was left"


def test_a_surveyor_ends_with_its_supervisor(runtime_base: Path):
    """In the middle of a survey, which hears of nothing."""
    mark = uuid.uuid4().hex
    with start_script(mark, "hang in survey") as script:
        wait_until(lambda: len(marked_processes(mark)) == 3)
        script.kill()
    wait_until(lambda: not marked_processes(mark))
    sweep(runtime_base)


def test_a_spare_ends_with_its_supervisor(runtime_base: Path):
    mark = uuid.uuid4().hex
    with start_script(mark, "spare") as script:
        wait_until(lambda: len(marked_processes(mark)) == 4)
        script.kill()
    wait_until(lambda: not marked_processes(mark))
    sweep(runtime_base)


def test_a_module_run_under_guard_ends_with_its_process():
    """The sizing process knows nothing of supervisors: unguarded, it would go on when its supervisor was killed."""
    with subprocess.Popen(["sleep", "60"]) as owner:
        guarded = [sys.executable, "-m", "expertflow.ipc.stage.run_with_parent", str(owner.pid), SLEEPER, "x"]
        with subprocess.Popen(guarded, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "sleeping ['x']\n"
            owner.kill()
            assert child.wait(timeout=30) == 75


@pytest.mark.parametrize("seed", [1, 2])
def test_stages_killed_at_random_moments_find_each_other_again(seed: int):
    """Deaths of both ends of a link at once, and while starting again, must end in fresh links of the newest epochs."""
    chance = random.Random(seed)
    with fake_engine(restart_limit=20) as engine:
        for _ in range(8):
            engine.kill(chance.choice(STAGES))
            time.sleep(chance.random() * 0.4)
        for stage, peer in [
            ("scheduler", "compute"),
            ("predictor", "loader"),
            ("loader", "compute"),
            ("compute", "loader"),
        ]:
            wait_until(lambda s=stage, p=peer: heard(engine, s, f"{p} said") == engine.snapshot().restarts[p] + 1)
        assert engine.failure is None
        assert sum(engine.snapshot().restarts.values()) >= 4
