"""The program behind `make fuzz`: what it counts as a fault of a target. The tests need no atheris."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from expertflow.tests.fuzz import __main__ as fuzz
from expertflow.tests.fuzz import drive
from expertflow.tests.fuzz.drive import EXIT, REPORT, CurrentInput, Session, _await_end
from expertflow.tests.fuzz.target import Target


def write_report(folder: Path, faults: dict[str, str], end: str = "") -> None:
    (folder / REPORT).write_text(json.dumps({"runs": 640, "seconds": 2.0, "faults": faults}))
    (folder / EXIT).write_text(end)


def test_a_target_that_ended_in_time_has_no_fault(tmp_path: Path) -> None:
    write_report(tmp_path, {})
    outcome = fuzz._outcome("a", tmp_path, 0, 0.0)
    assert outcome == ("a", 640, 2.0, [])
    assert fuzz._row(outcome) == {"target": "a", "runs": 640, "runs per second": 320, "found": 0}


@pytest.mark.parametrize("end", ["was killed after its time", "ended with -9"])
def test_a_process_that_ends_otherwise_is_a_fault(end: str, tmp_path: Path) -> None:
    write_report(tmp_path, {}, end)
    assert fuzz._outcome("a", tmp_path, 0, 0.0).faults == [f"its process {end}"]


def test_a_target_that_never_ran_is_a_fault(tmp_path: Path) -> None:
    """Reports of an earlier run say nothing of this one."""
    write_report(tmp_path, {"old": "fault-1"})
    outcome = fuzz._outcome("a", tmp_path, 1, time.time() + 1000)
    assert outcome.runs == 0 and outcome.faults == ["its process was not run: all ended with 1"]


def test_inputs_that_the_library_left_are_faults_of_this_run_alone(tmp_path: Path) -> None:
    write_report(tmp_path, {}, "ended with 70")
    (tmp_path / "timeout-0123abc").touch()
    [fault] = fuzz._outcome("a", tmp_path, 0, 0.0).faults
    assert "timeout-0123abc" in fault
    os.utime(tmp_path / "timeout-0123abc", (1, 1))
    assert fuzz._outcome("a", tmp_path, 0, 2.0).faults == ["its process ended with 70"]


def test_ends_of_processes_are_told_apart() -> None:
    assert [_await_end(start_child(code), 60.0) for code in ("pass", "import os; os._exit(7)")] == [0, 7]
    assert _await_end(start_child("import signal; signal.pause()"), 0.0) is None


ENDLESS = """
import pathlib, sys
from expertflow.tests.fuzz import drive
drive.INPUT_LIMIT_S = 0.2
drive.CurrentInput(pathlib.Path(sys.argv[1])).set(b"endless")
while True: pass
"""


def test_an_input_that_computes_too_long_ends_its_process_and_is_known(tmp_path: Path) -> None:
    file = tmp_path / "current"
    ended = subprocess.run([sys.executable, "-P", "-c", ENDLESS, str(file)], check=False, timeout=100)
    assert ended.returncode == -signal.SIGPROF
    assert CurrentInput.read(file) == b"endless"


def test_time_in_which_a_process_does_not_compute_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "INPUT_LIMIT_S", 0.2)
    current = CurrentInput(tmp_path / "current")
    try:
        current.set(b"patient")
        time.sleep(0.5)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    assert CurrentInput.read(tmp_path / "current") == b"patient" and CurrentInput.read(tmp_path / "none") == b""


def start_child(code: str) -> int:
    """Return the process id of a Python that runs `code`, whose end is waited for by the process id alone."""
    return os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", code], os.environ)


def test_each_fault_is_written_once_and_fuzzing_goes_on(tmp_path: Path) -> None:
    def read(data: bytes) -> object:
        return {}[data] if data.startswith(b"x") else len(data)

    session = Session(Target("a", lambda folder: read, lambda: [b"a"], ()), read, tmp_path)
    for data in (b"a", b"x1", b"x2", b"b"):
        session.run(data)
    session.write(time.monotonic())
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["runs"] == 4 and len(report["faults"]) == 1
    [name] = report["faults"].values()
    assert (tmp_path / name).read_bytes() == b"x1" and "KeyError" in (tmp_path / f"{name}.txt").read_text()


def test_time_is_shared_by_all_targets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, float]] = []

    def record(names: list[str], seconds: float, seed: int, out: Path) -> list[fuzz.Outcome]:
        asked.extend((name, seconds) for name in names)
        return [fuzz.Outcome(name, 10, seconds, []) for name in names]

    monkeypatch.setattr(fuzz, "fuzz_targets", record)
    monkeypatch.setattr(fuzz.importlib.util, "find_spec", lambda name: object())
    words = ["fuzz", "--minutes", "5", "--jobs", "2", "--only", "header", "--json", str(tmp_path / "x")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        fuzz.main()
    assert ended.value.code == 0
    assert {name for name, _ in asked} == {name for name in fuzz.TARGETS if "header" in name}
    assert sum(seconds for _, seconds in asked) == pytest.approx(600)
    assert json.loads((tmp_path / "x").read_text())["targets"][0]["runs"] == 10
