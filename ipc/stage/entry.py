"""Entry point of a stage process: `if __name__ == "__main__": run_stage(main)`."""

from __future__ import annotations

import errno
import logging
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from ...errors import EngineError, ExpertFlowError
from ..transport.link import LinkCut
from .logs import set_up_logging
from .run_with_parent import ORPHANED, end_with_process, end_with_supervisor
from .stage import Stage
from .startup import Preparation, StageSpec, SupervisorGone, Surveyor, await_spec, prepare_nothing, refuse_survey

FAILED = 3
"""Exit code of a stage that has sent the reason (`Failed`)."""
TORCH_HAS_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""Text of the RuntimeError that torch raises on a CPU."""


def run_stage(
    main: Callable[[Stage], None], survey: Surveyor = refuse_survey, prepare: Preparation = prepare_nothing
) -> NoReturn:
    """Receive the spec, run `main` as that stage, and exit.

    Command line: the descriptor of the socket that brings the spec, and the pid of the supervisor. Before the spec, one
    stage is asked for the survey of the checkpoint (`survey`), and a spare process to `prepare` for a model's folder.
    Exit codes: 0 asked to end, `FAILED` with the reason sent, `ORPHANED` when the supervisor has ended. Import modules
    that take seconds inside `main`, `survey` or `prepare`: the supervisor is watched before these run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_process(int(sys.argv[2]))
    spec = _await_spec(survey, prepare)
    end_with_supervisor(spec.death_fd, spec.supervisor_pid)
    set_up_logging(spec.log, spec.stage, spec.epoch)
    with Stage(spec) as stage:
        _handle_signals(stage)
        code = _run(main, stage)
        signal.set_wakeup_fd(-1)
    sys.exit(code)


def _await_spec(survey: Surveyor, prepare: Preparation) -> StageSpec:
    try:
        return await_spec(int(sys.argv[1]), survey, prepare)
    except ExpertFlowError:
        sys.exit(FAILED)
    except SupervisorGone:
        sys.exit(ORPHANED)


def _handle_signals(stage: Stage) -> None:
    """Let SIGTERM set a flag; the wake-up descriptor ends a poll that has just begun."""
    signal.set_wakeup_fd(stage.wake_fd, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: stage.stop(gently=False))


def _run(main: Callable[[Stage], None], stage: Stage) -> int:
    try:
        main(stage)
    except ExpertFlowError as error:
        stage.fail(error)
        return FAILED
    except LinkCut as cut:
        remedy = "A restart mends that; report it if it comes again"
        stage.fail(EngineError(str(cut), f"stage {stage.spec.stage}", remedy))
        return FAILED
    except Exception as error:  # noqa: BLE001 - the boundary of the process: the supervisor gets any error
        logging.getLogger(__name__).exception("stage failed")
        stage.fail(unexpected_error(error, stage.spec.stage, stage.spec.log.tells_all))
        return FAILED
    return 0


def unexpected_error(error: Exception, stage: str, tells_all: bool) -> EngineError:
    """Return what the supervisor is told of an error that nobody caught; `tells_all`: it may quote a request."""
    if is_short_of_memory(error):
        remedy = "Lower expert_memory or kv_memory, or free memory"
        return EngineError("ran out of memory", f"stage {stage}", remedy)
    told = f"{type(error).__name__}: {error}" if tells_all else type(error).__name__
    return EngineError(told, f"stage {stage}", "This is a bug")


def is_short_of_memory(error: Exception) -> bool:
    """Return whether Python, numpy, torch or the system found no memory."""
    found = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return found or isinstance(error, MemoryError) or TORCH_HAS_NO_MEMORY in str(error)
