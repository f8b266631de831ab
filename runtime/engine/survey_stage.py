"""What is to be known of a checkpoint, from processes that import torch and transformers: the supervisor does not."""

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
from .children import LAST_LINES, describe_exit
from .prestart import PrestartedStage

REFUSED = 2
"""Exit code with which the sizing process says that the file holds the error."""

ReportProgress = Callable[[Progress], None]


def run_survey(early: PrestartedStage, config: Config, report: ReportProgress = lambda progress: None) -> Survey:
    """Let the process of a stage that is to start survey the model of `config`. A hub id is downloaded first.

    Raises what the surveyor found wrong (CheckpointError, UsageError), or EngineError if it died or took longer than
    `start_timeout_s` without a word.
    """
    early.ask(AskSurvey(config.model, config.revision, config.dtype, config.generation_settings))
    while True:
        match _receive(early, config):
            case Progress() as progress:
                report(progress)
            case Surveyed(survey):
                return _with_notices(msgspec.msgpack.decode(survey, type=Survey))
            case Failed(error=facts):
                raise facts.to_error()


def _with_notices(survey: Survey) -> Survey:
    for notice in survey.notices:
        logging.getLogger(__name__).warning(notice)
    return survey


def _receive(early: PrestartedStage, config: Config) -> FromSurveyor:
    try:
        return early.receive(config.start_timeout_s)
    except TimeoutError:
        raise _late("survey", config) from None
    except EOFError:
        end = early.reap()
        raise EngineError(f"the surveyor {end.what}", config.model, end.remedy) from None


def run_sizes(config: Config, out_path: Path) -> ModelSizes:
    """What a plan needs, from the headers of the files or, where they are not here, from the configuration alone.

    Made in a process of its own. Raises what `run_survey` raises.
    """
    guarded = [sys.executable, "-P", "-m", "expertflow.ipc.stage.run_with_parent", str(os.getpid())]
    asked = ["expertflow.workers.surveyor", config.model, config.revision, config.dtype]
    asked += [config.generation_settings, os.fspath(out_path)]
    try:
        ended = subprocess.run(
            guarded + asked,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            process_group=0,
            timeout=config.start_timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _late("sizing", config) from None
    if ended.returncode:
        _raise(ended.returncode, config.model, out_path, ended.stderr)
    return msgspec.msgpack.decode(out_path.read_bytes(), type=ModelSizes)


def _late(what: str, config: Config) -> EngineError:
    text = f"the {what} took longer than {config.start_timeout_s:g} s"
    return EngineError(text, config.model, "Raise start_timeout_s")


def _raise(code: int, model: str, out_path: Path, errors: bytes) -> None:
    if code == REFUSED and out_path.exists():
        facts = msgspec.msgpack.decode(out_path.read_bytes(), type=ErrorFacts)
        raise facts.to_error()
    words = "\n".join(errors.decode("utf-8", "replace").splitlines()[-LAST_LINES:])
    raise EngineError(f"the sizing process {describe_exit(code)}", model, words)
