"""Another user of the machine gets nothing: no list, no file, no socket, no signal, no memory (SECURITY.md).

Only root can become another user, so the tests need it; a child process does, since there is no way back.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from expertflow import Client, Supervisor
from expertflow.configs.schema import Config
from expertflow.errors import EngineError
from expertflow.runtime.client.watching import Watcher, living_engines
from expertflow.tests.runtime.fakes import fake_plans, wait_until
from expertflow.tests.scheduler.fake_engine import FakeEngine

NOBODY = 65_534
PR_SET_DUMPABLE = 4
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


def as_other_user(act: Callable[[], object]) -> None:
    """Run `act` as another user in a child process, and fail with what it raised."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.closerange(3, write_end)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            act()
            status = 0
        except BaseException:  # noqa: BLE001 - told to the parent
            os.write(write_end, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(status)
    os.close(write_end)
    with open(read_end, "rb") as told:
        said = told.read().decode()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, said


def refused(act: Callable[[], object]) -> None:
    """Require that the system refuses."""
    try:
        result = act()
    except PermissionError:
        return
    raise AssertionError(f"it was let in: {result!r}")


def use_folder(folder: Path, names: list[str]) -> None:
    """Try all that one can do with a folder, and with the sockets and files of these names in it."""
    refused(lambda: os.listdir(folder))
    refused(lambda: (folder / "new").touch())
    refused(lambda: folder.rename(folder.with_name("stolen")))
    refused(lambda: folder.rmdir())
    refused(lambda: folder.chmod(0o777))
    refused(lambda: os.open(folder, os.O_RDONLY))
    for name in names:
        refused(lambda name=name: (folder / name).read_bytes())
        refused(lambda name=name: (folder / name).unlink())
        refused(lambda name=name: connect(folder / name))


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.connect(str(path))


def use_process(pid: int, fds: list[str]) -> None:
    """Try to stop a process, to look into it, and to open what it has open."""
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, 0):
        refused(lambda number=number: os.kill(pid, number))
    refused(lambda: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL))
    for name in ("mem", "environ", "maps", "fd"):
        refused(lambda name=name: list_or_read(Path(f"/proc/{pid}/{name}")))
    for fd in fds:
        refused(lambda fd=fd: os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR))
        refused(lambda fd=fd: os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY))
    libc = ctypes.CDLL(None, use_errno=True)
    attach = 16
    assert libc.ptrace(attach, pid, 0, 0) == -1, "it could be traced"


def list_or_read(path: Path) -> object:
    return os.listdir(path) if path.is_dir() else path.read_bytes()


def family_of(engine: Supervisor) -> list[int]:
    return [stats.pid for stats in engine.snapshot().stages.values()]


def memory_fds(pid: int) -> list[str]:
    """The descriptors of shared memory that a process has."""
    found: list[str] = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            found += [fd.name] * ("memfd:" in os.readlink(fd))
    return found


@pytest.fixture
def shared_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in which every user may make files, as /tmp."""
    folder = Path("/tmp") / f"ef-shared-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o1777)
    yield folder
    assert not [entry for entry in folder.iterdir() if entry.name != "engine"]
    folder.rmdir()


@pytest.mark.parametrize("at", ["", "engine"])
def test_another_user_can_neither_read_nor_write_nor_stop_an_engine(
    shared_folder: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that is everyone's, with a name of its own or a fixed one."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shared_folder))
    address = str(shared_folder / at) if at else ""
    config = Config.load(model="nowhere", kv_memory="1MB")
    with Supervisor(config, plans=fake_plans(), address=address) as engine:
        wait_until(lambda: len(engine.snapshot().stages) == 4)
        folder = Path(engine.address)
        assert folder.parent == shared_folder
        names = [entry.name for entry in folder.iterdir()]
        pids = family_of(engine)
        fds = {pid: memory_fds(pid) for pid in [os.getpid(), *pids]}
        assert {"monitor", "control"} <= set(names) and any(fds.values())

        def attack() -> None:
            use_folder(folder, names)
            for pid, open_fds in fds.items():
                use_process(pid, open_fds)

        as_other_user(attack)
        assert engine.failure is None and engine.snapshot().restarts == dict.fromkeys(engine.snapshot().restarts, 0)
        assert family_of(engine) == pids


def test_a_place_that_another_user_has_taken_is_not_used(shared_folder: Path) -> None:
    """Else the other one could read what is put there, or be served in place of the engine."""
    place = shared_folder / "engine"
    as_other_user(lambda: place.mkdir(mode=0o777))
    try:
        config = Config.load(model="nowhere", kv_memory="1MB")
        with pytest.raises(Exception, match="no private folder of an engine"):
            Supervisor(config, plans=fake_plans(), address=str(place)).start()
        assert place.stat().st_uid == NOBODY
    finally:
        place.rmdir()


@pytest.mark.parametrize("kind", ["link", "file", "link to ours"])
def test_a_planted_link_or_file_is_not_followed(shared_folder: Path, tmp_path: Path, kind: str) -> None:
    place, ours = shared_folder / "engine", tmp_path / "precious"
    ours.mkdir(mode=0o700)
    (ours / "file").write_text("x")
    target = ours if kind == "link to ours" else Path("/etc")
    as_other_user(lambda: place.write_text("x") and None if kind == "file" else place.symlink_to(target))
    try:
        config = Config.load(model="nowhere", kv_memory="1MB")
        with pytest.raises(Exception, match="engine"):
            Supervisor(config, plans=fake_plans(), address=str(place)).start()
        assert (ours / "file").read_text() == "x"
    finally:
        place.unlink()


def test_a_sweep_leaves_directories_of_other_users_alone(tmp_path: Path) -> None:
    base = Path("/tmp") / f"ef-base-{os.getpid()}"
    base.mkdir()
    base.chmod(0o1777)
    try:
        as_other_user(lambda: (base / "expertflow-abandoned").mkdir(mode=0o700))
        with FakeEngine(tmp_path, base=base) as engine, Client(engine.address) as client:
            assert client.generate([[1]], 2)
        assert (base / "expertflow-abandoned").is_dir()
        (base / "expertflow-abandoned").rmdir()
    finally:
        base.rmdir()


def test_the_attack_would_notice_an_open_door(tmp_path: Path) -> None:
    """These tests can fail: a folder of mode 0755 is read."""
    folder = Path("/tmp") / f"ef-open-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        with pytest.raises(AssertionError, match="it was let in"):
            as_other_user(lambda: refused(lambda: os.listdir(folder)))
    finally:
        folder.rmdir()


def test_a_client_gives_nothing_to_an_engine_of_another_user(shared_folder: Path, tmp_path: Path) -> None:
    """After an engine has ended, another user may take its place in a folder that is everyone's."""
    read_end, write_end = os.pipe()
    place, pid = shared_folder / "engine", os.fork()
    if pid == 0:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        place.mkdir(mode=0o777)
        lock = os.open(place, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(write_end, b"x")
        signal.pause()
        os._exit(0)
    try:
        assert os.read(read_end, 1)
        for connect_to in (lambda: Client(place, connect_timeout_s=5), lambda: Watcher(place)):
            with pytest.raises(EngineError, match="belongs to another user"):
                connect_to()
        assert find_engine_fails()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read_end)
        os.close(write_end)
        place.rmdir()


def find_engine_fails() -> bool:
    """Another user's engine is never the only one that is found."""
    return not [path for path in living_engines() if path.stat().st_uid != os.geteuid()]
