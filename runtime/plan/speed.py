"""Forecast of a configured engine: its rates are measured or kept, earlier runs correct it, and are added to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from ...configs.schema import Config
from ...configs.sizes import parse_size
from ...ipc.messages import Snapshot
from ...workers.checkpoint.survey import ModelSizes
from ...workers.kernels.table import KernelTable
from .disk_rate import DiskRate, measure_disk_rate
from .forecast import Rates, Routing, StepForecast, forecast_step
from .past_runs import (
    MIN_STEPS,
    Past,
    PastRun,
    change_past,
    disk_key,
    learn_correction,
    learn_routing,
    machine_key,
    median_error,
    model_key,
    read_past,
)

MeasureDisk = Callable[[list[Path], int], DiskRate]

GUESS = "a guess, as this model has not run here: that of the built-in model"
PROMPT_TOKENS = 512
"""Prompt of the forecast of a prefill."""
HOST_BYTES_PER_S = 5e9
"""Rate of copies out of a host store without an emulated link: of one core, while others compute."""


class Recorded(NamedTuple):
    """A recording of a model's routing."""

    routing: Callable[[int, int], Routing]
    """Expert slots and rows of a step -> the routing."""
    words: str


class ModelOnMachine(msgspec.Struct, frozen=True, kw_only=True):
    """A model with what its speed here depends on."""

    sizes: ModelSizes
    fingerprint: str
    files: list[str]
    kernels: KernelTable

    @property
    def machine_key(self) -> str:
        """Return the digest of the machine."""
        return machine_key(self.kernels)

    @property
    def model_key(self) -> str:
        """Return the digest of the model."""
        return model_key(self.sizes, self.fingerprint)


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of an engine since its start."""

    decode_steps: int = 0
    decode_tokens: int = 0
    decode_ns: int = 0
    decode_stall_ns: int = 0
    decode_experts: int = 0
    decode_misses: int = 0
    misses: int = 0
    loads: int = 0

    @classmethod
    def of(cls, snapshot: Snapshot) -> Counted:
        """Return the counters of one engine's snapshot; a stage that has published nothing has none."""
        found = {name: value for stats in snapshot.stages.values() for name, value in stats.counters.items()}
        return cls(**{name: int(found[name]) for name in cls.__struct_fields__ if name in found})

    def decode_loads(self, slots: int) -> int:
        """Return the experts read for decode steps: all but those that filled free slots or that prefills missed."""
        return max(self.decode_misses, self.loads - slots - (self.misses - self.decode_misses))


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """Expected speed of an engine."""

    decode: list[StepForecast]
    """Decode steps of one row and of as many as are configured."""
    prefill: StepForecast
    """Step of one prompt of `PROMPT_TOKENS`, or of a chunk of it."""
    read_bytes_per_s: float
    """Rate of the model's files, or of the link; infinite where nothing is read."""
    disk: DiskRate | None
    routing: str
    """Words on where the number of missing experts is from."""
    past_error: float | None
    """Median error of earlier forecasts of this model here; None: there were none."""
    past_runs: int
    others_error: float | None
    """The same of other models on this machine."""
    others_runs: int


def expected_speed(
    model: ModelOnMachine,
    config: Config,
    slots: int,
    past: Past,
    disk: DiskRate | None,
    recorded: Recorded | None = None,
) -> Speed:
    """Return the expected speed with so many slots; `disk`: measured rate of the files, if experts are read there.

    Routing is as recorded where a recording is given, else as in earlier runs, else a guess.
    """
    rates = machine_rates(model, config, disk)
    rows = sorted({1, config.batch_size})
    chunk = min(PROMPT_TOKENS, config.prefill_chunk or PROMPT_TOKENS)
    own = past.of(model.machine_key, model.model_key)
    others = [run for run in past.runs if run.machine == model.machine_key and run.model != model.model_key]
    habits = {each: recorded.routing(slots, each) for each in rows} if recorded else {}
    return Speed(
        decode=[step_of(model, slots, each, rates, own, habits.get(each)) for each in rows],
        prefill=step_of(model, slots, chunk, rates, own),
        routing=recorded.words if recorded else "as in earlier runs" if own else GUESS,
        read_bytes_per_s=rates.read_bytes_per_s,
        disk=disk,
        past_error=median_error(own),
        past_runs=len(own),
        others_error=median_error(others),
        others_runs=len(others),
    )


def step_of(
    model: ModelOnMachine, slots: int, rows: int, rates: Rates, runs: list[PastRun], routing: Routing | None = None
) -> StepForecast:
    """Return the forecast of a step, corrected by earlier runs of this model here, by default in its routing, too."""
    correction = learn_correction(runs, model.sizes, rates, rows)
    rates = msgspec.structs.replace(rates, correction=correction)
    return forecast_step(model.sizes, slots, rows, rates, routing or learn_routing(runs, model.sizes, rows))


def machine_rates(model: ModelOnMachine, config: Config, disk: DiskRate | None) -> Rates:
    """Return the rates of the configured tier."""
    if config.tier == "disk":
        rate = disk.bytes_per_s if disk else float("inf")
        return Rates(kernels=model.kernels, read_bytes_per_s=rate)
    link = parse_size(config.link_rate, "link_rate").count_bytes if config.link_rate else None
    rate = float(link or HOST_BYTES_PER_S)
    return Rates(kernels=model.kernels, read_bytes_per_s=rate, latency_s=config.link_latency_us / 1e6)


def disk_of(
    model: ModelOnMachine,
    config: Config,
    past: Past,
    again: bool = False,
    measure: MeasureDisk = measure_disk_rate,
) -> DiskRate | None:
    """Return the rate of the model's disk, measured if none is kept or `again`; None where no file is read.

    Raises CheckpointError if a file cannot be read.
    """
    if config.tier != "disk" or not model.files:
        return None
    files = [Path(file) for file in model.files]
    key = disk_key(files[0], config.reads_in_flight)
    if not again and key in past.disks:
        return past.disks[key]
    rate = measure(files, config.reads_in_flight)
    change_past(lambda kept: kept.disks.update({key: rate}))
    return rate


def record_run(
    model: ModelOnMachine,
    config: Config,
    slots: int,
    counted: Counted,
    past: Past | None = None,
    measure: MeasureDisk = measure_disk_rate,
) -> PastRun | None:
    """Keep what a run measured beside what was to be expected before it; None if it was too short to tell."""
    steps = counted.decode_steps
    if steps < MIN_STEPS or not model.kernels.machine:
        return None
    past = read_past() if past is None else past
    rows = counted.decode_tokens / steps
    rates = machine_rates(model, config, disk_of(model, config, past, measure=measure))
    expected = step_of(model, slots, max(1, round(rows)), rates, past.of(model.machine_key, model.model_key))
    run = PastRun(
        machine=model.machine_key,
        model=model.model_key,
        share=slots / model.sizes.expert_count,
        rows=rows,
        steps=steps,
        step_s=counted.decode_ns / steps / 1e9,
        compute_s=(counted.decode_ns - counted.decode_stall_ns) / steps / 1e9,
        experts=counted.decode_experts / steps,
        loads=counted.decode_loads(slots) / steps,
        forecast_s=expected.step_s,
    )
    change_past(lambda kept: kept.runs.append(run))
    return run
