"""How stages are started and what is said of their ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from expertflow.configs.schema import Config
from expertflow.errors import CheckpointError, EngineError
from expertflow.runtime.engine.children import describe_exit, tail
from expertflow.runtime.engine.stages import compute_threads, stage_plans
from expertflow.runtime.engine.survey_stage import run_sizes


def test_only_compute_gets_more_than_one_thread_and_only_the_predictor_is_nice():
    """A second spinning thread anywhere makes a matmul of compute many times slower."""
    plans = {plan.stage: plan for plan in stage_plans(Config(compute_threads=7))}
    assert {stage: plan.environment["OMP_NUM_THREADS"] for stage, plan in plans.items()} == {
        "compute": "7", "loader": "1", "predictor": "1", "scheduler": "1",
    }  # fmt: skip
    assert {stage for stage, plan in plans.items() if plan.nice} == {"predictor"}
    assert {stage for stage, plan in plans.items() if "OMP_WAIT_POLICY" not in plan.environment} == {"compute"}


def test_compute_spins_long_only_where_all_experts_are_asked_for():
    """Beside loads a spinning thread keeps the loader from its core."""
    spins = {}
    for share in ("100%", "25%"):
        compute = next(plan for plan in stage_plans(Config(expert_memory=share)) if plan.stage == "compute")
        spins[share] = int(compute.environment["GOMP_SPINCOUNT"])
    assert spins["100%"] > spins["25%"] > 0


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (3, 2), (8, 7)])
def test_threads_of_compute_leave_a_core_where_there_are_many(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert compute_threads(Config()) == threads


def test_ends_are_told_in_words():
    assert "SIGKILL" in describe_exit(-9)
    assert "SIGSEGV" in describe_exit(-11)
    assert "signal 40" in describe_exit(-40)  # a real-time signal has no name
    assert "exit code 3" in describe_exit(3)


def test_the_tail_of_a_file_is_bounded(tmp_path: Path):
    """A stage may have written gigabytes; its error is not to carry them."""
    file = tmp_path / "log"
    file.write_text("x" * 100_000 + "\nsecond\nlast\n")
    assert tail(file, 2) == "second\nlast"
    assert len(tail(file, 10, max_bytes=50)) <= 50
    assert tail(tmp_path / "missing", 2) == ""


def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Let this program stand in for the sizing process: it gets the guard's arguments."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable} -P\nimport sys\nout = sys.argv[-1]\n{code}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def test_a_refusal_of_the_sizing_process_keeps_its_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    answer = b"\\x82\\xa4code\\xaacheckpoint\\xa4what\\xa6broken"
    stand_in(monkeypatch, tmp_path, f"open(out, 'wb').write(b'{answer.decode()}')\nsys.exit(2)")
    with pytest.raises(CheckpointError, match="broken"):
        run_sizes(Config(model="m"), tmp_path / "sizes")


def test_a_dead_sizing_process_is_an_error_with_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Exit code 2 without a file is Python's own for wrong usage, not a refusal."""
    stand_in(monkeypatch, tmp_path, "sys.stderr.write('oh no')\nsys.exit(2)")
    with pytest.raises(EngineError, match="exit code 2.*oh no"):
        run_sizes(Config(model="m"), tmp_path / "sizes")


def test_sizing_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    stand_in(monkeypatch, tmp_path, "import time\ntime.sleep(60)")
    with pytest.raises(EngineError, match="longer than 0.5 s"):
        run_sizes(Config(model="m", start_timeout_s=0.5), tmp_path / "sizes")
