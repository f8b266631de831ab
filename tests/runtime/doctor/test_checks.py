"""The doctor's judgement: facts to findings, with the cure that fits, and nothing said of a sound machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from expertflow.configs.schema import Config
from expertflow.runtime.doctor import checks
from expertflow.runtime.doctor.checks import Finding, judge_machine, judge_model_memory, worst
from expertflow.runtime.doctor.versions import TESTED, is_below, least_versions
from expertflow.runtime.doctor.view import summary
from expertflow.runtime.plan.disk_rate import DiskRate
from expertflow.runtime.plan.fit import budget_fit
from expertflow.runtime.plan.forecast import StepForecast
from expertflow.tests.runtime.doctor.machines import GB, SOUND
from expertflow.tests.runtime.fake_survey import fake_survey
from expertflow.workers.kernels.report import KernelReport
from expertflow.workers.surveyor.answers import DeviceReport
from expertflow.workers.surveyor.device_report import report_device
from msgspec import structs

LEAST = {"torch": "2.10", "pyzmq": "27"}
REPORT = KernelReport(
    cpu="A CPU", flags=["avx2"], threads=2, torch="2.13", capability="AVX2", caps={}, native="avx2", variants=["avx2"],
    missing="", cache="/cache",
)  # fmt: skip


def findings(device: str = "cpu", **changes: object) -> dict[str, Finding]:
    facts = structs.replace(SOUND, **changes)
    return {finding.name: finding for finding in judge_machine(facts, Config(device=device), LEAST)}


def test_a_sound_machine_needs_no_cure() -> None:
    found = findings().values()
    assert worst(found) == "ok" and not any(finding.cure for finding in found) and summary([*found]) == "fit"


@pytest.mark.parametrize(
    ("name", "verdict", "cure", "changes"),
    [
        ("memory", "unfit", "End other programs", {"available_bytes": GB // 2}),
        ("memory", "unfit", "docker run --memory", {"available_bytes": 1, "group": "/g", "group_bytes": GB}),
        ("shared memory", "unfit", "seccomp", {"shared_error": "memfd_create: Operation not permitted"}),
        ("shared memory", "ok", "", {"shm_bytes": 64 << 20}),
        ("run directory", "unfit", "XDG_RUNTIME_DIR", {"run_error": "Permission denied"}),
        ("run directory", "unfit", "Free 16.8 MB", {"run_free_bytes": 1000}),
        ("locked memory", "ok", "", {"locked_bytes": 0}),
        ("locked memory", "warning", "ulimit -l unlimited", {"locked_bytes": 65536, "device": "cuda"}),
        ("locked memory", "ok", "", {"locked_bytes": -1, "device": "cuda"}),
        ("open files", "warning", "ulimit -n 1024", {"open_files": 512}),
        ("open files", "unfit", "ulimit -n 1024", {"open_files": 64}),
        ("open files", "ok", "", {"open_files": -1}),
        ("cores", "warning", "--compute-threads 2", {"allowed_cores": 2.5}),
        ("cores", "warning", "--compute-threads 1", {"allowed_cores": 0.5}),
        ("cores", "ok", "", {"allowed_cores": 7.0}),
        ("cores", "warning", "taskset", {"cores": 1, "compute_threads": 1}),
        ("CUDA", "unfit", "CUDA build of torch", {"torch_cuda": "", "device": "cuda", "locked_bytes": -1}),
        ("CUDA", "ok", "", {"torch_cuda": ""}),
        ("versions", "unfit", "'torch>=2.10'", {"versions": {**TESTED, "torch": "2.9.1"}}),
        ("versions", "unfit", "'pyzmq>=27'", {"versions": {**TESTED, "pyzmq": ""}}),
        ("versions", "warning", "torch==", {"versions": {**TESTED, "torch": "2.99.0+cpu"}}),
        ("versions", "ok", "", {"versions": {**TESTED, "torch": TESTED["torch"] + "+cu130"}}),
        ("versions", "warning", "expertflow verify", {"python": "3.15.0"}),
    ],
)
def test_what_is_wrong_gets_its_verdict_and_cure(
    name: str, verdict: str, cure: str, changes: dict[str, object]
) -> None:
    found = findings(**changes)  # pyright: ignore[reportArgumentType]
    assert found[name].verdict == verdict and cure in found[name].cure and bool(cure) == bool(found[name].cure)
    assert all(other.verdict == "ok" for other in found.values() if other.name != name)


def test_the_smallest_memory_of_a_model_is_its_skeleton_and_one_slot() -> None:
    """A control group below that is named with the limit that would do."""
    sizes = fake_survey(layers=4, experts=8, stride_bytes=GB, skeleton_bytes=2 * GB)
    fit = budget_fit(sizes, Config(model="m"), 20 * GB)
    for available, verdict, cure in [
        (fit.total_bytes, "ok", ""),
        (fit.total_bytes - 1, "unfit", "--expert-memory"),
        (fit.smallest_bytes - 1, "unfit", f"to {(fit.smallest_bytes + 10**7) / GB:.2f} GB at least"),
    ]:
        limited = structs.replace(SOUND, available_bytes=available, group="/g", group_bytes=available + 10**7)
        found = judge_model_memory(limited, budget_fit(sizes, Config(model="m"), available))
        assert found.verdict == verdict and cure in found.cure, found


@pytest.mark.parametrize(("read_s", "verdict"), [(0.05, "ok"), (0.5, "warning"), (5.0, "unfit")])
def test_a_slow_disk_is_judged_by_what_decoding_needs(read_s: float, verdict: str) -> None:
    rate = DiskRate(bytes_per_s=5e6, read_bytes=10**7, seconds=1, direct=True, file_system="ext4")
    step = StepForecast(rows=8, compute_s=0.1, read_s=read_s, misses=10, step_s=read_s + 0.1)
    found = checks.judge_disk(rate, step)
    assert found.verdict == verdict and "5.0 MB/s" in found.what and ("faster disk" in found.cure) == (verdict != "ok")


def test_files_in_memory_are_no_disk() -> None:
    rate = DiskRate(bytes_per_s=5e9, read_bytes=10**7, seconds=1, direct=True, file_system="tmpfs")
    found = checks.judge_disk(rate, StepForecast(rows=1, compute_s=1, read_s=0, misses=0, step_s=1))
    assert found.verdict == "warning" and "Move the model to a disk" in found.cure


def test_kernels_that_are_missing_or_held_back_are_warnings() -> None:
    assert [each.verdict for each in checks.judge_kernels(REPORT)] == ["ok", "ok"]
    held = structs.replace(REPORT, caps={"ATEN_CPU_CAPABILITY": "avx2"}, native="", missing="no compiler")
    instructions, native = checks.judge_kernels(held)
    assert (instructions.verdict, instructions.cure) == ("warning", "unset ATEN_CPU_CAPABILITY")
    assert native.verdict == "warning" and "gcc" in native.cure and native.what == "no compiler"


@pytest.mark.parametrize(
    ("device", "verdict", "cure"),
    [
        (DeviceReport(name="cuda:0", free_bytes=GB, pinned=True), "ok", ""),
        (DeviceReport(name="cuda:0", free_bytes=GB), "warning", "ulimit -l"),
        (DeviceReport(name="cuda:0", error="torch finds no usable GPU"), "unfit", "nvidia-smi"),
    ],
)
def test_devices_are_judged_as_compute_would_find_them(device: DeviceReport, verdict: str, cure: str) -> None:
    (found,) = checks.judge_devices([device], Config(device="cuda"))
    assert (found.name, found.verdict) == ("cuda:0", verdict) and cure in found.cure
    assert checks.judge_devices([device], Config()) == []


def test_devices_are_opened_and_pinned_for() -> None:
    """The stand-in of the tests opens; CUDA opens or says why it does not."""
    fake, cuda = report_device("fake:1"), report_device("cuda")
    assert fake.free_bytes > 0 and fake.pinned and not fake.error
    assert bool(cuda.error) != torch.cuda.is_available() and (not cuda.error or "cuda" in cuda.error.lower())


def test_versions_are_those_of_the_tests() -> None:
    """Versions in constraints.txt are what the tests run with; the doctor must not praise others."""
    root = Path(__file__).resolve().parents[3]
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE))
    assert {name: pins[name] for name in TESTED} == TESTED
    assert least_versions().items() >= {"torch": "2.10", "pyzmq": "27"}.items() and "pytest" not in least_versions()
    assert is_below("2.9.1+cpu", "2.10") and not is_below("2.13.0+cpu", "2.13") and is_below("", "1")
