"""The judgement of a machine: a finding from facts, each with a verdict and a cure. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from ...configs.schema import Config
from ...configs.sizes import format_size
from ...ipc.shared.open_files import ENGINE_FILES
from ...workers.kernels.report import KernelReport
from ...workers.surveyor.answers import DeviceReport
from ..plan.disk_rate import DiskRate
from ..plan.fit import WITH_TORCH_BYTES, WITHOUT_TORCH_BYTES, Fit
from ..plan.forecast import StepForecast
from .facts import UNLIMITED, MachineFacts
from .versions import TESTED, TESTED_PYTHONS, is_below, release

Verdict = Literal["ok", "warning", "unfit"]

PROCESSES_BYTES = WITH_TORCH_BYTES + 4 * WITHOUT_TORCH_BYTES
"""Memory of an engine's processes without any model: compute, three other stages and the supervisor."""
RUN_FOLDER_BYTES = 16 << 20
"""Sockets, logs and the survey of one engine take less; images of requests come on top."""
COMFORTABLE_FILES = 1024
"""Open files for some hundred clients beside an engine."""

MOST_WAITING = 10
"""A disk that takes longer than so many times what compute takes makes decoding a wait for it."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was examined."""

    name: str
    verdict: Verdict
    what: str
    """State found."""
    cure: str = ""
    """Words on what to do; empty: nothing."""


def worst(findings: Iterable[Finding]) -> Verdict:
    """Return the gravest verdict."""
    found = {finding.verdict for finding in findings}
    return "unfit" if "unfit" in found else "warning" if "warning" in found else "ok"


def judge_machine(facts: MachineFacts, config: Config, least: dict[str, str]) -> list[Finding]:
    """Return the findings that need neither a model nor torch; `least`: package -> least version."""
    return [
        judge_memory(facts),
        judge_shared_memory(facts),
        judge_run_folder(facts),
        judge_locked_memory(facts, config),
        judge_open_files(facts),
        judge_cores(facts),
        judge_cuda(facts, config),
        judge_versions(facts, least),
    ]


def judge_memory(facts: MachineFacts) -> Finding:
    """Judge whether an engine's processes have room, whatever the model."""
    what = _memory_words(facts)
    if facts.available_bytes >= PROCESSES_BYTES:
        return Finding(name="memory", verdict="ok", what=what)
    need = f"the processes of an engine alone take up to {format_size(PROCESSES_BYTES)}"
    return Finding(name="memory", verdict="unfit", what=f"{what}; {need}", cure=_more_memory(facts, PROCESSES_BYTES))


def judge_model_memory(facts: MachineFacts, fit: Fit) -> Finding:
    """Judge whether a model fits as configured, and whether its skeleton and one slot would."""
    what = f"{_memory_words(facts)}; this model takes {format_size(fit.total_bytes)} as configured"
    smallest = f"{format_size(fit.smallest_bytes)} with a single expert slot"
    if fit.total_bytes <= facts.available_bytes:
        return Finding(name="memory", verdict="ok", what=f"{what}, {smallest}")
    if fit.smallest_bytes > facts.available_bytes:
        kv = f"or give less than {format_size(fit.kv_bytes)} to --kv-memory"
        cure = f"{_more_memory(facts, fit.smallest_bytes)}, {kv}"
        return Finding(name="memory", verdict="unfit", what=f"{what}, and {smallest}", cure=cure)
    if fit.device is not None or not fit.largest_slots:
        cure = f"{_more_memory(facts, fit.total_bytes)}, or use --tier disk with less --host-memory"
        return Finding(name="memory", verdict="unfit", what=what, cure=cure)
    size = f"{fit.largest_slots_bytes // 1000}KB"
    cure = f"Give --expert-memory {size} or less, or leave the option out"
    return Finding(name="memory", verdict="unfit", what=what, cure=cure)


def _memory_words(facts: MachineFacts) -> str:
    available = f"{format_size(facts.available_bytes)} available"
    if facts.group:
        return f"{available} within the limit of {format_size(facts.group_bytes)} of {facts.group}"
    return f"{available} of {format_size(facts.machine_bytes)}"


def _more_memory(facts: MachineFacts, needed_bytes: int) -> str:
    if not facts.group:
        return f"End other programs, or use a machine with {format_size(needed_bytes)} free"
    limit = facts.group_bytes + needed_bytes - facts.available_bytes
    return (
        f"Raise the limit of the control group to {format_size(limit)} at least: docker run --memory, "
        "resources.limits.memory of a pod, or MemoryMax of a systemd unit"
    )


def judge_shared_memory(facts: MachineFacts) -> Finding:
    """Judge whether expert slots can be made. They are anonymous files, which /dev/shm's size does not limit."""
    if facts.shared_error:
        cure = "Allow memfd_create and fallocate: look at the seccomp profile and the memory limit of the container"
        return Finding(name="shared memory", verdict="unfit", what=facts.shared_error, cure=cure)
    shm = f"/dev/shm ({format_size(facts.shm_bytes)})" if facts.shm_bytes else "/dev/shm (there is none)"
    what = f"anonymous files (memfd) work; {shm} is not used: its size, and docker's --shm-size, need not be raised"
    return Finding(name="shared memory", verdict="ok", what=what)


def judge_run_folder(facts: MachineFacts) -> Finding:
    """Judge whether a run directory can be made, with room for its small files."""
    if facts.run_error:
        cure = "Set XDG_RUNTIME_DIR to a short folder that you can write"
        return Finding(name="run directory", verdict="unfit", what=f"{facts.run_folder}: {facts.run_error}", cure=cure)
    what = f"{facts.run_folder}, {format_size(facts.run_free_bytes)} free"
    if facts.run_free_bytes >= RUN_FOLDER_BYTES:
        return Finding(name="run directory", verdict="ok", what=what)
    cure = f"Free {format_size(RUN_FOLDER_BYTES)} there, or set XDG_RUNTIME_DIR to another folder"
    return Finding(name="run directory", verdict="unfit", what=what, cure=cure)


def judge_locked_memory(facts: MachineFacts, config: Config) -> Finding:
    """Judge the limit of locked memory, which matters only where a host store is pinned for a GPU."""
    unlimited = facts.locked_bytes == UNLIMITED
    limit = "no limit" if unlimited else f"limit {format_size(facts.locked_bytes)}"
    if not config.on_device:
        return Finding(name="locked memory", verdict="ok", what=f"{limit}; nothing is locked or pinned on a CPU")
    if unlimited:
        return Finding(name="locked memory", verdict="ok", what=f"{limit}; the host store can be pinned")
    cure = "ulimit -l unlimited; docker run --ulimit memlock=-1; LimitMEMLOCK=infinity in a systemd unit"
    what = f"{limit}: where the driver counts pinned memory, the host store stays pageable and copies are slower"
    return Finding(name="locked memory", verdict="warning", what=what, cure=cure)


def judge_open_files(facts: MachineFacts) -> Finding:
    """Judge how many files may be open at once."""
    if facts.open_files == UNLIMITED or facts.open_files >= COMFORTABLE_FILES:
        count = "any number" if facts.open_files == UNLIMITED else f"{facts.open_files:,}"
        return Finding(name="open files", verdict="ok", what=f"{count} at once")
    cure = f"ulimit -n {COMFORTABLE_FILES}; docker run --ulimit nofile={COMFORTABLE_FILES}; LimitNOFILE in a unit"
    if facts.open_files < ENGINE_FILES:
        what = f"{facts.open_files} at once; an engine takes up to {ENGINE_FILES}"
        return Finding(name="open files", verdict="unfit", what=what, cure=cure)
    what = f"{facts.open_files} at once: few for many clients"
    return Finding(name="open files", verdict="warning", what=what, cure=cure)


def judge_cores(facts: MachineFacts) -> Finding:
    """Judge whether compute's threads have cores, and the loader one beside them."""
    threads = f"compute uses {facts.compute_threads} threads"
    if facts.allowed_cores != UNLIMITED and facts.allowed_cores < facts.compute_threads:
        fitting = max(1, int(facts.allowed_cores))
        what = f"time for {facts.allowed_cores:g} of {facts.cores} cores (control group); {threads}, which are paused"
        cure = f"Give --compute-threads {fitting}, or more time: docker run --cpus, resources.limits.cpu, CPUQuota"
        return Finding(name="cores", verdict="warning", what=what, cure=cure)
    if facts.cores == 1:
        what = "1 core: experts are not loaded while others compute"
        return Finding(name="cores", verdict="warning", what=what, cure="Allow a second core: taskset, docker --cpus 2")
    return Finding(name="cores", verdict="ok", what=f"{facts.cores}; {threads}")


def judge_disk(rate: DiskRate, step: StepForecast) -> Finding:
    """Judge whether experts come as fast as a decode step of the configured batch computes, `step` its forecast."""
    how = "past the page cache" if rate.direct else "after dropping its pages from the page cache"
    what = f"{format_size(rate.bytes_per_s)}/s ({how}{', ' + rate.file_system if rate.file_system else ''})"
    if rate.in_memory:
        what = f"{what}: the files lie in memory, beside the slots"
        cure = "Move the model to a disk, and give its memory to --expert-memory"
        return Finding(name="disk", verdict="warning", what=what, cure=cure)
    rows = "one row" if step.rows == 1 else f"{step.rows} rows"
    need = f"a step of {rows} reads for {1e3 * step.read_s:,.0f} ms and computes for {1e3 * step.compute_s:,.0f} ms"
    if step.read_s <= step.compute_s:
        return Finding(name="disk", verdict="ok", what=f"{what}; {need}")
    cure = "Give more --expert-memory, a smaller --batch-size, or put the model on a faster disk"
    verdict: Verdict = "unfit" if step.read_s > MOST_WAITING * step.compute_s else "warning"
    return Finding(name="disk", verdict=verdict, what=f"{what}: {need}", cure=cure)


def judge_cuda(facts: MachineFacts, config: Config) -> Finding:
    """Judge whether the installed torch can use the configured device."""
    built = f"torch is built for CUDA {facts.torch_cuda}" if facts.torch_cuda else "torch is built without CUDA"
    if not config.on_device:
        return Finding(name="CUDA", verdict="ok", what=f"not asked for; {built}")
    if facts.torch_cuda or not config.device.startswith("cuda"):
        return Finding(name="CUDA", verdict="ok", what=built)
    cure = "Install a CUDA build of torch (pytorch.org has the command), or use --device cpu"
    return Finding(name="CUDA", verdict="unfit", what=built, cure=cure)


def judge_devices(devices: list[DeviceReport], config: Config) -> list[Finding]:
    """Judge the devices as compute would open them."""
    return [_judge_device(device) for device in devices if config.on_device]


def _judge_device(device: DeviceReport) -> Finding:
    if device.error:
        cure = "Look at the driver (nvidia-smi), give a container its GPUs (docker run --gpus all), or use --device cpu"
        return Finding(name=device.name, verdict="unfit", what=device.error, cure=cure)
    free = f"{format_size(device.free_bytes)} free"
    if device.pinned:
        return Finding(name=device.name, verdict="ok", what=f"{free}; host memory can be pinned")
    cure = "Raise the limit of locked memory: ulimit -l unlimited; docker run --ulimit memlock=-1"
    what = f"{free}; host memory cannot be pinned: copies are slower and block compute"
    return Finding(name=device.name, verdict="warning", what=what, cure=cure)


def judge_versions(facts: MachineFacts, least: dict[str, str]) -> Finding:
    """Judge the installed packages by those that are needed at least, and by those that the tests ran with."""
    old = [name for name, version in facts.versions.items() if not version or is_below(version, least.get(name, "0"))]
    if old:
        what = ", ".join(f"{name} {facts.versions[name] or 'is missing'}" for name in old)
        wanted = " ".join(f"'{name}>={least.get(name, TESTED[name])}'" for name in old)
        return Finding(name="versions", verdict="unfit", what=what, cure=f"pip install {wanted}")
    others = [name for name, version in facts.versions.items() if release(version) != release(TESTED[name])]
    known = release(facts.python) in TESTED_PYTHONS
    if not others and known:
        packages = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
        return Finding(name="versions", verdict="ok", what=f"python {facts.python}, {packages}")
    found = [f"{name} {facts.versions[name]} (tested with {TESTED[name]})" for name in others]
    found += [] if known else [f"python {facts.python} (tested with {', '.join(TESTED_PYTHONS)})"]
    pins = " ".join(f"{name}=={TESTED[name]}" for name in others)
    cure = "Run `expertflow verify` with your model" + (f", or pip install {pins}" if pins else "")
    return Finding(name="versions", verdict="warning", what=", ".join(found), cure=cure)


def judge_kernels(report: KernelReport) -> list[Finding]:
    """Judge the instruction sets that are used, and whether the native kernels are there."""
    return [_judge_instructions(report), _judge_native(report)]


def _judge_instructions(report: KernelReport) -> Finding:
    flags = " ".join(report.flags) or "none that matter"
    if report.caps:
        caps = ", ".join(f"{name}={value}" for name, value in report.caps.items())
        what = f"{flags}; {caps} keeps the library from some of them"
        return Finding(name="instructions", verdict="warning", what=what, cure=f"unset {' '.join(report.caps)}")
    if not report.flags:
        what = "no vector instructions that kernels are made for: products are slow"
        return Finding(name="instructions", verdict="warning", what=what, cure="Use a CPU with AVX2, or 64-bit ARM")
    return Finding(name="instructions", verdict="ok", what=f"{flags}; the library uses {report.capability}")


def _judge_native(report: KernelReport) -> Finding:
    if report.native:
        return Finding(name="native kernels", verdict="ok", what=report.native)
    cure = "Install a wheel, or a C compiler (apt install gcc) and then: pip install --force-reinstall --no-deps ."
    return Finding(name="native kernels", verdict="warning", what=report.missing, cure=cure)
