"""The doctor on machines that are unfit for real: limits, control groups, small file systems, a throttled disk."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from expertflow.benchmarks.limits import MemoryGroup, NoLimit, memory_group
from expertflow.configs.schema import Config
from expertflow.runtime.doctor.facts import gather_facts
from expertflow.tests.runtime.doctor.machines import examined
from expertflow.tests.runtime.processes import MODEL, command

MB = 1 << 20
THROTTLE = Path("/sys/fs/cgroup/blkio")


def limit_this_process() -> None:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))


def require_mounts() -> None:
    tried = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "t", "/mnt"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"mounting in a namespace of its own takes root: {tried.stderr.decode().strip()}")


@contextmanager
def limited(limit_bytes: int) -> Iterator[MemoryGroup]:
    try:
        with memory_group(limit_bytes, "expertflow-doctor") as group:
            yield group
    except NoLimit as reason:
        pytest.skip(f"no memory control group can be made here: {reason}")


def test_low_limits_of_a_process() -> None:
    found = examined("fake:1", limit_this_process)
    assert found["locked memory"]["verdict"] == "warning" and "ulimit -l" in found["locked memory"]["cure"]
    assert "65.5 kB" in found["locked memory"]["what"]
    assert found["open files"]["verdict"] == "unfit" and "ulimit -n 1024" in found["open files"]["cure"]


def test_a_small_dev_shm_is_no_fault_and_a_full_run_folder_is() -> None:
    """More shared memory than /dev/shm holds is allocated there, as an engine does it: no --shm-size is needed."""
    require_mounts()
    mounts = "mount -t tmpfs -o size=1m shm /dev/shm; mount -t tmpfs -o size=64k run /mnt"
    allocate = "from expertflow.ipc.shared.memory import Arena; Arena.create('slots', 16 << 20).close()"
    found = examined(within=mounts, more=allocate, XDG_RUNTIME_DIR="/mnt")
    assert found["shared memory"]["verdict"] == "ok" and "1.0 MB" in found["shared memory"]["what"]
    assert "need not be raised" in found["shared memory"]["what"]
    assert found["run directory"]["verdict"] == "unfit" and "XDG_RUNTIME_DIR" in found["run directory"]["cure"]


def test_a_control_group_without_room_for_the_processes() -> None:
    with limited(400 * MB) as group:
        ended = subprocess.run(group.command(command("doctor", "--json")), capture_output=True, timeout=60, check=False)
        assert ended.returncode == 1 and group.kills == 0, ended.stderr
    memory = json.loads(ended.stdout)["findings"][0]
    assert (memory["name"], memory["verdict"]) == ("memory", "unfit")
    assert group.folder.name in memory["what"] and "docker run --memory" in memory["cure"]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_control_group_below_skeleton_and_one_slot() -> None:
    with limited(1150 * MB) as group:
        words = command("doctor", "--json", "--model", str(MODEL), "--kernels", "linear")
        ended = subprocess.run(group.command(words), capture_output=True, timeout=200, check=False)
        assert ended.returncode == 1 and group.kills == 0, ended.stderr
    found = {finding["name"]: finding for finding in json.loads(ended.stdout)["findings"]}
    assert found["memory"]["verdict"] == "unfit" and "single expert slot" in found["memory"]["what"]
    assert "docker run --memory" in found["memory"]["cure"] and "--kv-memory" in found["memory"]["cure"]


def test_limits_of_groups_are_found_below_another_root(tmp_path: Path) -> None:
    """Control groups of version 2 as a container shows them, for machines where none can be made."""
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/meminfo": "MemTotal: 32000000 kB\nMemAvailable: 16000000 kB\n",
        "sys/fs/cgroup/memory.max": "500000000\n",
        "sys/fs/cgroup/memory.current": "100000000\n",
        "sys/fs/cgroup/memory.stat": "inactive_file 50000000\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    facts = gather_facts(Config(), tmp_path)
    assert (facts.available_bytes, facts.group_bytes, facts.allowed_cores) == (450_000_000, 500_000_000, 1.5)
    assert facts.group == str(tmp_path / "sys/fs/cgroup")


def test_a_disk_that_is_throttled(tmp_path: Path) -> None:
    """The rate is that of the disk, not of the page cache, and measuring ends soon however slow it is."""
    if not (THROTTLE / "blkio.throttle.read_bps_device").exists() or os.geteuid():
        pytest.skip("throttling a disk takes root and control groups of version 1")
    file, group = tmp_path / "model.safetensors", THROTTLE / f"expertflow-doctor-{os.getpid()}"
    file.write_bytes(os.urandom(48 * MB))
    os.sync()
    device = file.stat().st_dev
    group.mkdir()
    try:
        limit = f"{os.major(device)}:{os.minor(device)} {20 * MB}"
        (group / "blkio.throttle.read_bps_device").write_text(limit)
        found = subprocess.run(
            ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", sys.executable, "-c", MEASURE, file],
            capture_output=True,
            timeout=60,
            check=True,
        )
    except OSError as error:
        pytest.skip(f"this disk cannot be throttled: {error}")
    finally:
        group.rmdir()
    rate, seconds, direct = json.loads(found.stdout)
    if not direct:
        pytest.skip("this file system has no direct reads")
    assert 5 * MB < rate < 30 * MB and seconds < 5


MEASURE = """
import json, sys
from pathlib import Path
from expertflow.runtime.plan.disk_rate import measure_disk_rate
rate = measure_disk_rate([Path(sys.argv[1])], 2, 0.5)
print(json.dumps([rate.bytes_per_s, rate.seconds, rate.direct]))
"""
