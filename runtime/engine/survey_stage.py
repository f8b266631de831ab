"""Surveys of a checkpoint from processes that import torch and transformers, which the supervisor does not."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from ...configs.schema import Config
from ...errors import EngineError
from ...ipc.messages import AskSurvey, ErrorFacts, Failed, Progress, Surveyed
from ...ipc.messages.control import FromSurveyor
from ...workers.checkpoint.survey import ModelSizes, Survey
from .budgets import packing_choice
from .children import MAX_LOG_LINES, describe_exit
from .prestart import PrestartedStage

REFUSED = 2
"""Exit code of the sizing process when the file holds its error."""

ReportProgress = Callable[[Progress], None]


def run_survey(process: PrestartedStage, config: Config, report: ReportProgress = lambda progress: None) -> Survey:
    """Let a prestarted stage survey the model of `config`. A hub id is downloaded first.

    Raises the error of the surveyor (CheckpointError, UsageError), or EngineError if it died or was silent for longer
    than `start_timeout_s`.
    """
    choice = packing_choice(config)
    request = AskSurvey(
        config.model,
        config.revision,
        config.dtype,
        config.generation_settings,
        config.kernels,
        config.on_device,
        experts_in=choice.experts_in,
    )
    process.send(request)
    while True:
        match _receive(process, config):
            case Progress() as progress:
                report(progress)
            case Surveyed(survey):
                return _log_notices(msgspec.msgpack.decode(survey, type=Survey))
            case Failed(error=facts):
                raise facts.to_error()


def _log_notices(survey: Survey) -> Survey:
    for notice in survey.notices:
        logging.getLogger(__name__).warning(notice)
    return survey


def _receive(process: PrestartedStage, config: Config) -> FromSurveyor:
    try:
        return process.receive(config.start_timeout_s)
    except TimeoutError:
        raise _timeout_error("survey", config) from None
    except EOFError:
        end = process.reap()
        raise EngineError(f"the surveyor {end.what}", config.model, end.remedy) from None


def run_sizes(config: Config, out_path: Path) -> ModelSizes:
    """Return the sizes that a plan needs, from file headers or, where those are missing, from config.json alone.

    The kernel table that this machine keeps, if any, says which weights stay packed. Runs in a process of its own and
    writes `out_path`. Raises the errors of `run_survey`.
    """
    command = [sys.executable, "-P", "-m", "expertflow.ipc.stage.run_with_parent", str(os.getpid())]
    command += ["expertflow.workers.surveyor", config.model, config.revision, config.dtype]
    choice = msgspec.json.encode(packing_choice(config)).decode()
    kernels = "" if config.on_device else config.kernels  # a device has no table
    command += [config.generation_settings, choice, kernels, os.fspath(out_path)]
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            process_group=0,
            timeout=config.start_timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _timeout_error("sizing", config) from None
    if ended.returncode:
        _raise_error(ended.returncode, config.model, out_path, ended.stderr)
    return msgspec.msgpack.decode(out_path.read_bytes(), type=ModelSizes)


def _timeout_error(what: str, config: Config) -> EngineError:
    text = f"the {what} took longer than {config.start_timeout_s:g} s"
    return EngineError(text, config.model, "Raise start_timeout_s")


def _raise_error(code: int, model: str, out_path: Path, errors: bytes) -> None:
    if code == REFUSED and out_path.exists():
        facts = msgspec.msgpack.decode(out_path.read_bytes(), type=ErrorFacts)
        raise facts.to_error()
    output = "\n".join(errors.decode("utf-8", "replace").splitlines()[-MAX_LOG_LINES:])
    raise EngineError(f"the sizing process {describe_exit(code)}", model, output)
