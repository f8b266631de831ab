"""Runs the process behind `expertflow doctor` and `plan`, which imports torch in the environment of compute."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from ...configs.schema import Config
from ...errors import EngineError
from ...ipc.messages import ErrorFacts, Progress
from ...workers.kernels.report import DiagnosisRequest
from ...workers.surveyor.answers import Diagnosis
from .budgets import packing_choice
from .children import describe_exit
from .stages import stage_plans

REFUSED = 2
"""Exit code of the process when the file holds its error."""


class DiagnosisDied(EngineError):
    """The diagnosing process ended before it had an answer: for want of memory, say."""


def run_diagnosis(
    config: Config, measure: bool, out: Path, report: Callable[[Progress], None], download: bool = True
) -> Diagnosis:
    """Return the state of the kernels and the sizes of the configured model, if any; the process writes `out`.

    Without `download` a hub id that is not on this machine gives the sizes by its configuration, and no kernel table.

    Raises the errors of a survey, or DiagnosisDied.
    """
    request = DiagnosisRequest(
        model=config.model,
        revision=config.revision,
        dtype=config.dtype,
        generation_settings=config.generation_settings,
        kernels=config.kernels,
        on_device=config.on_device,
        measure=measure,
        devices=config.devices if config.on_device else [],
        download=download,
        choice=packing_choice(config),
    )
    command = [sys.executable, "-P", "-m", "expertflow.ipc.stage.run_with_parent", str(os.getpid())]
    command += ["expertflow.workers.surveyor.diagnosis", msgspec.json.encode(request).decode(), os.fspath(out)]
    code, errors = _run(command, _environment(config), report)
    if code == REFUSED and out.exists():
        raise msgspec.msgpack.decode(out.read_bytes(), type=ErrorFacts).to_error()
    if code:
        raise DiagnosisDied(f"the process that times kernels {describe_exit(code)}", config.model or "doctor", errors)
    return msgspec.msgpack.decode(out.read_bytes(), type=Diagnosis)


def _environment(config: Config) -> dict[str, str]:
    """Return the environment of compute: its threads, and how long they spin."""
    compute = next(plan for plan in stage_plans(config) if plan.stage == "compute")
    return {**os.environ, **compute.environment}


def _run(command: list[str], environment: dict[str, str], report: Callable[[Progress], None]) -> tuple[int, str]:
    """Run the process and report its progress; return its exit code and what it wrote to stderr."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        process_group=0,  # Ctrl-C reaches us alone
    )
    with process:
        try:
            for line in process.stdout or ():
                report(msgspec.json.decode(line, type=Progress))
            errors = process.stderr.read() if process.stderr else b""
        except BaseException:
            process.kill()
            raise
    return process.returncode, errors.decode("utf-8", "replace").strip()
