"""Files that clients leave for compute: named, bounded, and gone with their client however it ends (I6)."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from expertflow.errors import BudgetError, RequestError
from expertflow.ipc.shared import attachments
from expertflow.ipc.shared.attachments import FOLDER, Attachments, attachment_path, is_attachment_name


def test_a_file_is_found_by_its_name_until_it_is_removed(tmp_path: Path) -> None:
    files = Attachments(tmp_path)
    assert not (tmp_path / FOLDER).exists()
    one, two = files.put(b"one"), files.put(b"two")
    assert attachment_path(tmp_path / FOLDER, one).read_bytes() == b"one"
    files.remove(one)
    files.remove(one)
    assert not attachment_path(tmp_path / FOLDER, one).exists()
    assert attachment_path(tmp_path / FOLDER, two).read_bytes() == b"two"
    files.close()
    assert list((tmp_path / FOLDER).iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", "../survey", "/etc/passwd", "a" * 32, "a" * 32 + ".lock", "a" * 32 + ".1/..", "A" * 32 + ".1"]
)
def test_a_name_is_never_a_path(name: str, tmp_path: Path) -> None:
    assert not is_attachment_name(name)
    with pytest.raises(RequestError):
        attachment_path(tmp_path, name)


def test_all_clients_together_are_bounded(tmp_path: Path) -> None:
    one, two = Attachments(tmp_path, max_bytes=1000), Attachments(tmp_path, max_bytes=1000)
    one.put(b"x" * 600)
    with pytest.raises(BudgetError, match="exceed"):
        two.put(b"x" * 600)
    two.put(b"x" * 400)
    one.close()
    two.close()


def test_files_of_a_dead_client_go_when_the_next_one_comes_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    living = Attachments(tmp_path)
    kept = living.put(b"living")
    script = (
        "import os, sys; from pathlib import Path; from expertflow.ipc.shared.attachments import Attachments;"
        "print(Attachments(Path(sys.argv[1])).put(b'dead'), flush=True); os.kill(os.getpid(), 9)"
    )
    dead = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    left = dead.stdout.strip()
    assert attachment_path(tmp_path / FOLDER, left).exists()
    other = Attachments(tmp_path)
    other.put(b"other")
    assert not attachment_path(tmp_path / FOLDER, left).exists()
    assert attachment_path(tmp_path / FOLDER, kept).exists()
    other.close()
    living.close()
    assert os.listdir(tmp_path / FOLDER) == []


def test_an_engine_that_is_gone_is_no_crash(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="cannot be written"):
        Attachments(tmp_path / "gone").put(b"one")


def test_a_lock_that_a_sweep_took_away_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making a lock and locking it, another client may take it for a dead one's."""
    lock, real, swept = tmp_path / "1.lock", fcntl.flock, []

    def flock(fd: int, operation: int) -> None:
        if not swept:
            swept.append(lock.unlink())
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    fd = attachments._open_locked(lock)
    assert os.path.samestat(os.fstat(fd), lock.stat())
    os.close(fd)
