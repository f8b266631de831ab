"""Keeps what a run on this machine measured, for the next forecast."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from ...errors import ExpertFlowError
from ..engine.starting import EngineHandle
from ..engine.supervisor import Supervisor
from .disk_rate import measure_disk_rate
from .speed import Counted, ModelOnMachine, record_run

LIMIT_S = 0.3
"""Seconds for a rate of the disk that nobody has measured yet."""


def keep_run(engine: EngineHandle) -> None:
    """Keep the speed of a running engine beside its forecast: rates and sizes, never a prompt.

    Nothing is kept of engines on a device, nor where anything goes wrong.
    """
    if not isinstance(engine, Supervisor) or engine.config.on_device:
        return
    with suppress(ExpertFlowError, OSError):
        resources = engine.resources
        survey = resources.survey
        model = ModelOnMachine(sizes=survey, fingerprint=survey.fingerprint, files=survey.files, kernels=survey.kernels)
        measure = partial(measure_disk_rate, limit_s=LIMIT_S)
        record_run(model, resources.config, resources.budgets.slots, Counted.of(engine.snapshot()), measure=measure)
