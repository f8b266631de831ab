"""The program behind `make fuzz`: what it counts as a fault of a target. The tests need no atheris."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from expertflow.tests.fuzz import __main__ as fuzz
from expertflow.tests.fuzz.drive import REPORT, Session
from expertflow.tests.fuzz.target import Target


def write_report(folder: Path, faults: dict[str, str]) -> None:
    (folder / REPORT).write_text(json.dumps({"runs": 640, "seconds": 2.0, "faults": faults}))


def test_a_target_that_ended_in_time_has_no_fault(tmp_path: Path) -> None:
    write_report(tmp_path, {})
    outcome = fuzz._outcome("a", tmp_path, 0, time.time())
    assert outcome == ("a", 640, 2.0, [])
    assert fuzz._row(outcome) == {"target": "a", "runs": 640, "runs per second": 320, "found": 0}


@pytest.mark.parametrize(("code", "words"), [(None, "killed after its time"), (-9, "ended with -9"), (77, "with 77")])
def test_a_process_that_ends_otherwise_is_a_fault(code: int | None, words: str, tmp_path: Path) -> None:
    write_report(tmp_path, {})
    [fault] = fuzz._outcome("a", tmp_path, code, time.time()).faults
    assert words in fault


def test_inputs_that_the_library_left_are_faults_of_this_run_alone(tmp_path: Path) -> None:
    write_report(tmp_path, {})
    begun_s = time.time()
    (tmp_path / "timeout-0123abc").touch()
    assert len(fuzz._outcome("a", tmp_path, 70, begun_s - 10).faults) == 1
    assert "ended with" in fuzz._outcome("a", tmp_path, 70, begun_s + 1000).faults[0]


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

    def record(name: str, seconds: float, seed: int, out: Path) -> fuzz.Outcome:
        asked.append((name, seconds))
        return fuzz.Outcome(name, 10, seconds, [])

    monkeypatch.setattr(fuzz, "fuzz_target", record)
    monkeypatch.setattr(fuzz.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr("sys.argv", ["fuzz", "--minutes", "10", "--only", "header", "--json", str(tmp_path / "x")])
    with pytest.raises(SystemExit) as ended:
        fuzz.main()
    assert ended.value.code == 0
    assert {name for name, _ in asked} == {name for name in fuzz.TARGETS if "header" in name}
    assert sum(seconds for _, seconds in asked) == pytest.approx(600)
    assert json.loads((tmp_path / "x").read_text())["targets"][0]["runs"] == 10
