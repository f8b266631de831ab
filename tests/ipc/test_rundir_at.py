"""The run directory at a fixed path: taken over from the dead, never from the living or from anyone else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.ipc.shared import rundir
from expertflow.ipc.shared.rundir import RunDir, living


@pytest.fixture
def path(runtime_base: Path) -> Path:
    return runtime_base / "mine"


def contents(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_it_is_private_and_removed_at_the_end(path: Path) -> None:
    directory = RunDir.at(path)
    assert directory.path == path and os.stat(path).st_mode & 0o777 == 0o700
    directory.close()
    assert not path.exists()


def test_a_relative_path_is_made_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages are started elsewhere, and clients read the address in another folder."""
    monkeypatch.chdir(path.parent)
    directory = RunDir.at(Path("mine"))
    assert directory.path == path
    directory.close()


def test_a_running_engine_keeps_its_address(path: Path) -> None:
    """Two engines behind one path would take each other's requests."""
    directory = RunDir.at(path)
    (directory.path / "clients").touch()
    with pytest.raises(UsageError, match="has a running engine") as refused:
        RunDir.at(path)
    assert refused.value.where == str(path) and refused.value.remedy
    assert "clients" in contents(path)
    directory.close()


def test_what_a_killed_engine_left_is_cleared(path: Path) -> None:
    """A service that is restarted by systemd after a SIGKILL must come up again at its address."""
    code = (
        "import os, sys, pathlib; from expertflow.ipc.shared.rundir import RunDir;"
        "d = RunDir.at(pathlib.Path(sys.argv[1])); (d.path / 'f').touch(); (d.path / 'g').mkdir();"
        "(d.path / 'g' / 'h').touch(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-P", "-c", code, str(path)], check=False)
    assert {"f", "g"} <= contents(path)
    directory = RunDir.at(path)
    assert not {"f", "g"} & contents(path)
    directory.close()


def test_a_folder_of_the_user_is_not_touched(path: Path) -> None:
    """`--address ~` must not empty the home folder."""
    path.mkdir(mode=0o700)
    (path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="is there already"):
        RunDir.at(path)
    assert contents(path) == {"thesis.tex"}
    shutil.rmtree(path)


def test_an_empty_private_folder_will_do(path: Path) -> None:
    """As `mktemp -d` makes it. One that others can enter is refused: they could run anything through the engine."""
    path.mkdir(mode=0o755)
    with pytest.raises(UsageError, match="no private folder"):
        RunDir.at(path)
    path.chmod(0o700)
    RunDir.at(path).close()
    assert not path.exists()


@pytest.mark.parametrize("kind", ["link", "file", "no parent", "long"])
def test_what_can_be_no_address(path: Path, kind: str, runtime_base: Path) -> None:
    given = {"no parent": path / "a", "long": runtime_base / ("x" * 90)}.get(kind, path)
    if kind == "link":
        path.symlink_to(runtime_base)
    elif kind == "file":
        path.touch()
    with pytest.raises(UsageError) as refused:
        RunDir.at(given)
    assert refused.value.where == str(given) and refused.value.remedy
    path.unlink(missing_ok=True)


def test_the_last_owner_may_be_just_leaving(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It removes the directory between our look and our lock: a lock on what is gone protects nothing."""
    leaving, made = RunDir.at(path), rundir._make_private

    def make(given: Path) -> None:
        made(given)
        if not leaving_done:
            leaving_done.append(True)
            monkeypatch.setattr(rundir, "_lock_private", lock_late)

    def lock_late(given: Path) -> int:
        monkeypatch.setattr(rundir, "_lock_private", lock)
        fd = os.open(given, os.O_RDONLY)
        leaving.close()
        return fd

    leaving_done: list[bool] = []
    lock = rundir._lock_private
    monkeypatch.setattr(rundir, "_make_private", make)
    directory = RunDir.at(path)
    with pytest.raises(UsageError, match="running engine"):
        RunDir.at(path)
    directory.close()


def test_an_engine_at_a_fixed_path_is_not_among_those_with_names(path: Path, runtime_base: Path) -> None:
    """`top` without an address looks for names; this one is named by who chose it."""
    directory = RunDir.at(path)
    assert living(runtime_base) == []
    directory.close()
