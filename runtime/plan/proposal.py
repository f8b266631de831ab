"""Everything `expertflow plan` says of a model here: sizes, budgets, the memory it would choose, the expected speed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from ...configs.schema import Config
from ...errors import BudgetError
from ...ipc.messages import Progress
from ...ipc.shared.available import available_bytes
from ...workers.checkpoint.survey import ModelSizes
from ...workers.surveyor.answers import Diagnosis
from ..engine.budgets import MemoryChoice, choose_memory, settle_memory
from ..engine.diagnosis import run_diagnosis
from ..engine.survey_stage import run_sizes
from .by_bits import BitsFit, fits_by_bits, sizes_in
from .disk_rate import DiskRate
from .fit import Fit, Needs, budget_fit, model_needs, process_bytes
from .past_runs import Past, read_past
from .speed import ModelOnMachine, Recorded, Speed, disk_of, expected_speed
from .traced import find_trace, recorded


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `plan`."""

    model: Needs
    budgets: Fit
    choice: str
    """Words on the memory that `serve` chooses without options, and why; empty: for a device or a host store."""
    speed: Speed | None = None
    """None: for a device, or where weights or kernels are missing."""
    choice_speed: Speed | None = None
    """The same with the memory that `serve` would choose, where it is another."""
    by_bits: list[BitsFit] = []
    """The model in 16, 8 and 4 bits; none if it is quantised already."""


def propose(
    config: Config,
    device_bytes: int,
    memory_only: bool,
    again: bool,
    report: Callable[[Progress], None],
    routing: Path | None = None,
) -> Proposal:
    """Return the answer for a configuration; `again`: time kernels although their times are kept.

    `routing`: trace by which missing experts are counted; without one that in the model's folder, for a first run.

    Raises the errors of a survey, BudgetError for a budget below one expert, and CheckpointError for unreadable files.
    """
    sizes, diagnosis = _sizes(config, memory_only, again, report)
    available = available_bytes()
    settled = settled_config(config, sizes, available)
    fit = budget_fit(sizes, settled, available, device_bytes)
    choice = _choice(config, sizes, available)
    bits = fits_by_bits(sizes, fit.slots_bytes)
    proposal = Proposal(model=model_needs(sizes), budgets=fit, choice=choice.reason if choice else "", by_bits=bits)
    if diagnosis is None or diagnosis.kernels.table is None or not diagnosis.files:
        return proposal
    model = ModelOnMachine(
        sizes=sizes, fingerprint=diagnosis.fingerprint, files=diagnosis.files, kernels=diagnosis.kernels.table
    )
    report(Progress("plan", "reading the model's files for a second", 0, 1))
    past = read_past()
    disk = disk_of(model, config, past, again=True)
    own = past.of(model.machine_key, model.model_key)
    known = recorded(routing if own else find_trace(routing, sizes.folder), sizes)
    speed = expected_speed(model, settled, fit.slots, past, disk, known)
    differs = choice is not None and choice.slots != fit.slots
    other = expected_speed(model, settled, choice.slots, past, disk, known) if choice and differs else None
    small = [_with_speed(model, settled, each, past, disk, known) for each in bits]
    return msgspec.structs.replace(proposal, speed=speed, choice_speed=other, by_bits=small)


def _with_speed(
    model: ModelOnMachine, config: Config, fit: BitsFit, past: Past, disk: DiskRate | None, known: Recorded | None
) -> BitsFit:
    """Return the fit with the expected decode steps of such experts."""
    small = msgspec.structs.replace(model, sizes=sizes_in(model.sizes, fit))
    return msgspec.structs.replace(fit, decode=expected_speed(small, config, fit.slots, past, disk, known).decode)


def settled_config(config: Config, sizes: ModelSizes, available: int) -> Config:
    """Return the configuration with the memory that would be chosen; one slot where none fits, to show the numbers."""
    try:
        return settle_memory(config, sizes, available, process_bytes(config, sizes))[0]
    except BudgetError:
        return msgspec.structs.replace(config, expert_memory=f"{sizes.stride_bytes}B")


def _choice(config: Config, sizes: ModelSizes, available: int) -> MemoryChoice | None:
    if config.on_device or config.tier == "host":
        return None
    try:
        return choose_memory(config, sizes, available, process_bytes(config, sizes))
    except BudgetError:
        return None


def _sizes(
    config: Config, memory_only: bool, again: bool, report: Callable[[Progress], None]
) -> tuple[ModelSizes, Diagnosis | None]:
    """Return the sizes, with the kernel table where speed is asked for and the CPU computes."""
    with tempfile.TemporaryDirectory(prefix="plan-expertflow-") as folder:
        report(Progress("plan", "reading the sizes of the model", 0, 1))
        if memory_only or config.on_device:
            return run_sizes(config, Path(folder, "sizes")), None
        diagnosis = run_diagnosis(config, again, Path(folder, "diagnosis"), report, download=False)
    if diagnosis.sizes is None:
        return run_sizes(config, Path(folder, "sizes")), None
    return diagnosis.sizes, diagnosis
