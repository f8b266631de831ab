"""The examination of a machine, for a model or for any: facts, the diagnosing process, the disk, the findings."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from ...configs.schema import Config
from ...errors import CheckpointError
from ...ipc.messages import Progress
from ...ipc.shared.available import SYSTEM
from ...workers.surveyor.answers import Diagnosis
from ..engine.diagnosis import DiagnosisDied, run_diagnosis
from ..plan.disk_rate import DiskRate, measure_disk_rate
from ..plan.fit import budget_fit
from ..plan.past_runs import read_past
from ..plan.proposal import settled_config
from ..plan.speed import MeasureDisk, ModelOnMachine, disk_of, expected_speed
from .checks import (
    PROCESSES_BYTES,
    Finding,
    judge_devices,
    judge_disk,
    judge_kernels,
    judge_machine,
    judge_model_memory,
)
from .facts import MachineFacts, gather_facts
from .versions import least_versions


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `expertflow doctor` has found out."""

    facts: MachineFacts
    findings: list[Finding]
    diagnosis: Diagnosis | None = None
    """None: there was no room for the process, or it died."""
    disk: DiskRate | None = None
    """None without a model, or where experts do not come from files."""


def examine(
    config: Config,
    measure: bool,
    report: Callable[[Progress], None],
    system: Path = SYSTEM,
    measure_disk: MeasureDisk = measure_disk_rate,
) -> Examination:
    """Examine this machine, for the model of `config` if there is one; `measure`: time its kernels again.

    Raises the errors of a survey. `system`: root of /proc and /sys/fs/cgroup.
    """
    facts = gather_facts(config, system)
    findings = judge_machine(facts, config, least_versions())
    if facts.available_bytes < PROCESSES_BYTES:
        return Examination(facts=facts, findings=findings)
    try:
        with tempfile.TemporaryDirectory(prefix="doctor-expertflow-") as folder:
            diagnosis = run_diagnosis(config, measure, Path(folder, "diagnosis"), report)
    except DiagnosisDied as error:
        died = Finding(name="kernels", verdict="unfit", what=str(error), cure="Free memory, or report this as a bug")
        return Examination(facts=facts, findings=[*findings, died])
    findings += [*judge_kernels(diagnosis.kernels), *judge_devices(diagnosis.devices, config)]
    disk, found = _examine_model(config, facts, diagnosis, measure_disk)
    replaced = {finding.name for finding in found}
    others = [finding for finding in findings if finding.name not in replaced]
    return Examination(facts=facts, findings=[*found, *others], diagnosis=diagnosis, disk=disk)


def _examine_model(
    config: Config, facts: MachineFacts, diagnosis: Diagnosis, measure_disk: MeasureDisk
) -> tuple[DiskRate | None, list[Finding]]:
    """Return the rate of the model's files and the findings on it and on memory; nothing without a model."""
    sizes = diagnosis.sizes
    if sizes is None:
        return None, []
    config = settled_config(config, sizes, facts.available_bytes)
    fit = budget_fit(sizes, config, facts.available_bytes)
    found = [judge_model_memory(facts, fit)]
    if config.tier != "disk" or config.on_device or not diagnosis.files or diagnosis.kernels.table is None:
        return None, found
    model = ModelOnMachine(
        sizes=sizes, fingerprint=diagnosis.fingerprint, files=diagnosis.files, kernels=diagnosis.kernels.table
    )
    past = read_past()
    try:
        disk = disk_of(model, config, past, again=True, measure=measure_disk)
    except CheckpointError as error:
        return None, [*found, Finding(name="disk", verdict="unfit", what=str(error), cure=error.remedy)]
    speed = expected_speed(model, config, fit.slots, past, disk)
    return disk, [*found] if disk is None else [*found, judge_disk(disk, speed.decode[-1])]
