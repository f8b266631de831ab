"""The run directory: private, locked, swept, short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.ipc.shared.rundir import RunDir, sweep


def test_only_its_owner_can_enter(run_dir: RunDir):
    """Whoever can reach the sockets can run anything through the engine."""
    assert os.stat(run_dir.path).st_mode & 0o777 == 0o700


def test_closing_removes_it_and_may_be_done_twice(runtime_base: Path):
    directory = RunDir.create(runtime_base)
    (directory.path / "survey").write_text("x")
    directory.close()
    directory.close()
    assert not directory.path.exists()


def test_the_next_start_sweeps_the_dead_and_spares_the_living(run_dir: RunDir, runtime_base: Path):
    """A killed engine cannot tidy up; one that sweeps a living engine's sockets kills it."""
    code = (
        "import os, sys, pathlib; from expertflow.ipc.shared.rundir import RunDir;"
        "d = RunDir.create(pathlib.Path(sys.argv[1])); (d.path / 'f').touch(); print(d.path, flush=True); os._exit(1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(runtime_base)], stdout=subprocess.PIPE, text=True, check=False
    )
    dead = Path(done.stdout.strip())
    assert dead.exists()
    second = RunDir.create(runtime_base)
    assert not dead.exists()
    assert run_dir.path.exists()
    second.close()


def test_a_sweep_leaves_other_things_alone(tmp_path: Path):
    """Files, links to elsewhere, and a directory that is just being made (it has no lock for a moment)."""
    victim = tmp_path / "precious"
    victim.mkdir()
    (victim / "file").touch()
    (tmp_path / "expertflow-link").symlink_to(victim)
    (tmp_path / "expertflow-file").touch()
    (tmp_path / ".expertflow-unborn").mkdir()
    sweep(tmp_path)
    assert (victim / "file").exists()
    assert len(list(tmp_path.iterdir())) == 4
    os.utime(tmp_path / ".expertflow-unborn", (1, 1))
    sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_sweep_leaves_folders_of_the_user_alone(tmp_path: Path):
    """A clone or a recording in /tmp that is called expertflow-something would be deleted by the next start."""
    clone = tmp_path / "expertflow-runtime"
    clone.mkdir(mode=0o755)
    (clone / "work").touch()
    sweep(tmp_path)
    assert (clone / "work").exists()


def test_a_base_whose_sockets_would_have_too_long_names_is_refused(tmp_path: Path):
    """The system's own error names neither the limit nor the remedy, and comes when a stage binds."""
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    with pytest.raises(UsageError, match="bytes long, more than the 107.*XDG_RUNTIME_DIR"):
        RunDir.create(deep)


def test_a_base_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="cannot make a run directory"):
        RunDir.create(tmp_path.parent / "missing")


def test_files_of_a_dead_start_are_removed_and_no_others(run_dir: RunDir):
    """loader.1 is a part of the text loader.12, but not of its name."""
    names = ["compute.1-loader.1", "compute.1-loader.12", "loader.1.log", "loader.12.log", "clients"]
    for name in names:
        (run_dir.path / name).touch()
    run_dir.remove_files_of("loader", 1)
    assert sorted(entry.name for entry in run_dir.path.iterdir()) == ["clients", "compute.1-loader.12", "loader.12.log"]
