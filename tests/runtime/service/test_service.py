"""Files that say where a command is, and word to systemd."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.runtime.service.announcing import announced
from expertflow.runtime.service.systemd import READY, notify


def test_a_file_says_it_until_the_end(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with announced(file, "12"):
        assert file.read_text() == "12\n"
        assert [entry.name for entry in tmp_path.iterdir()] == ["pid"]
    assert not file.exists()


def test_a_file_that_another_has_written_is_left(tmp_path: Path) -> None:
    """A service that is started again before the old one has ended must stay findable."""
    file = tmp_path / "pid"
    with announced(file, "12"):
        file.write_text("13\n")
    assert file.read_text() == "13\n"


def test_a_file_that_has_gone_is_no_error(tmp_path: Path) -> None:
    with announced(tmp_path / "pid", "12"):
        (tmp_path / "pid").unlink()


def test_it_is_removed_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), announced(tmp_path / "pid", "12"):
        raise KeyboardInterrupt
    assert not (tmp_path / "pid").exists()


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "pid"
    with pytest.raises(UsageError, match="cannot be written") as refused, announced(file, "12"):
        pytest.fail("went on")
    assert refused.value.where == str(file) and refused.value.remedy


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    """A device would be gone for everyone."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="no file"), announced(pipe, "12"):
        pytest.fail("went on")
    assert pipe.is_fifo()


def test_without_a_file_nothing_is_written(tmp_path: Path) -> None:
    with announced(None, "12"):
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["{folder}/notify", "@expertflow-test-{number}"])
def test_systemd_hears_that_it_is_ready(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = name.format(folder=tmp_path, number=tmp_path.stat().st_ino)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0"))
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert notify(READY)
        assert listener.recv(100) == b"READY=1"


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that ended because of it would be the worse for systemd."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify(READY)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nothing"))
    assert not notify(READY)
