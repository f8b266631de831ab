"""A Ray on this machine that `cluster up` starts and `cluster down` ends: private by default."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from ....configs.user_cache import cache_folder
from ....errors import EngineError, UsageError
from .extra import SETTINGS, keep_private

OBJECT_STORE_BYTES = 100_000_000
"""Shared memory for objects of Ray: frames are small and never go there, 78 MB is the least that Ray takes."""
END_S = 10.0
ANSWER_S = 5.0
NAMES = {"0.0.0.0", ""}


class LocalRay(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster that this user's last `cluster up` started or joined, in a file of the user's cache."""

    address: str
    folder: str = ""
    """Ray's temporary folder, by which its processes are known; empty: the Ray was there before."""
    url: str = ""


def start_ray(host: str) -> LocalRay:
    """Start a head node that listens at `host`; return its address. Raises EngineError, UsageError."""
    if host in NAMES:
        raise UsageError("must be the address of one network", "--host", "Give the private address of this machine")
    folder = tempfile.mkdtemp(prefix="ef-ray-")
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", f"--node-ip-address={host}", "--port=0",
        f"--temp-dir={folder}", "--include-dashboard=false", "--disable-usage-stats",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
    ]  # fmt: skip
    keep_private(f"{host}:0")
    environment = {**SETTINGS, **os.environ}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        end_ray(folder)
        raise EngineError(f"could not start: {_last_line(run.stderr or run.stdout)}", "ray", "Its output says why")
    return LocalRay(address=_address_in(Path(folder)), folder=folder)


def answers(address: str) -> bool:
    """Return whether something listens at the address of a Ray; Ray's own client would try for twenty minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S):
            return True
    except (OSError, ValueError):
        return False


def require_answer(address: str) -> None:
    """Raise EngineError unless something listens at the address of a Ray."""
    if not answers(address):
        raise EngineError("no Ray answers there", address, "Start it with: expertflow cluster up")


def end_ray(folder: str) -> None:
    """End the processes of the Ray whose temporary folder this is, and no others; remove the folder."""
    pids = processes_of(folder)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            _send(pid, number)
        deadline_s = time.monotonic() + END_S
        while (pids := {pid for pid in pids if _runs(pid)}) and time.monotonic() < deadline_s:
            time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def remember(cluster: LocalRay) -> None:
    """Write the cluster to the user's cache, for `status`, `down` and `batch`."""
    _file().parent.mkdir(parents=True, exist_ok=True)
    _file().write_bytes(msgspec.json.encode(cluster))


def recall() -> LocalRay | None:
    """Return the cluster of the last `up`; None: there is none."""
    try:
        return msgspec.json.decode(_file().read_bytes(), type=LocalRay)
    except (OSError, msgspec.DecodeError):
        return None


def forget() -> None:
    """Remove what `remember` wrote."""
    _file().unlink(missing_ok=True)


def _file() -> Path:
    return cache_folder() / "cluster.json"


def _address_in(folder: Path) -> str:
    """Return the address that the head node wrote."""
    return (folder / "ray_current_cluster").read_text().strip()


def processes_of(folder: str) -> set[int]:
    """Return the processes that name the folder in their command line, and all that descend from them.

    Some of Ray's processes change their command line, so their parents tell whose they are.
    """
    found, children = set[int](), dict[int, set[int]]()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            words, status = (entry / "cmdline").read_bytes(), (entry / "stat").read_text()
        except OSError:  # it has just ended
            continue
        children.setdefault(int(status.rpartition(")")[2].split()[1]), set()).add(int(entry.name))
        if f"{folder}/".encode() in words or f"={folder}".encode() in words:
            found.add(int(entry.name))
    fresh = found
    while fresh := {child for pid in fresh for child in children.get(pid, ())} - found:
        found |= fresh
    return found


def _runs(pid: int) -> bool:
    """Return whether a process runs; one that has ended and that its parent has not looked at does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
