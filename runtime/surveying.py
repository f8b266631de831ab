"""The survey of the checkpoint, made in a process of its own: the supervisor imports neither torch nor transformers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from ..configs.schema import Config
from ..errors import EngineError, error_from_code
from ..ipc.messages import ErrorFacts
from ..workers.checkpoint.survey import Survey
from .children import LAST_LINES, describe_exit

REFUSED = 2
"""Exit code with which the surveyor says that the file holds the error."""


def run_survey(config: Config, out_path: Path) -> Survey:
    """Survey the model of `config`; `out_path` then holds the result, for the stages.

    Raises what the surveyor found wrong (CheckpointError, UsageError), or EngineError if it died or took too long.
    """
    done = _run(config, out_path)
    if done.returncode == 0:
        return msgspec.msgpack.decode(out_path.read_bytes(), type=Survey)
    if done.returncode == REFUSED and out_path.exists():
        facts = msgspec.msgpack.decode(out_path.read_bytes(), type=ErrorFacts)
        raise error_from_code(facts.code, facts.what, facts.where, facts.remedy)
    words = "\n".join(done.stderr.decode("utf-8", "replace").splitlines()[-LAST_LINES:])
    raise EngineError(f"the surveyor {describe_exit(done.returncode)}", config.model, words)


def _run(config: Config, out_path: Path) -> subprocess.CompletedProcess[bytes]:
    guarded = [sys.executable, "-P", "-m", "expertflow.ipc.guarded", str(os.getpid())]
    asked = ["expertflow.workers.checkpoint", config.model, config.revision, config.dtype, os.fspath(out_path)]
    try:
        return subprocess.run(
            guarded + asked,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=config.start_timeout_s,
            process_group=0,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        text = f"the survey took longer than {config.start_timeout_s:g} s"
        raise EngineError(text, config.model, "Raise start_timeout_s") from error
