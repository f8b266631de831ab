"""From a function to a process: `if __name__ == "__main__": run_stage(main)`."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from ...errors import EngineError, ExpertFlowError
from .parent import ORPHANED, end_with_process, end_with_supervisor
from .spec import StageSpec
from .stage import Stage
from .startup import Preparation, SupervisorGone, Surveyor, await_spec, no_surveyor, nothing_to_prepare

FAILED = 3
"""Exit code of a stage that has told the supervisor why (`Failed`)."""


def run_stage(
    main: Callable[[Stage], None], survey: Surveyor = no_surveyor, prepare: Preparation = nothing_to_prepare
) -> NoReturn:
    """Run `main` as the stage whose spec comes through the socket that the first argument names, and exit; the
    second is the supervisor's process.

    Where the spec waits for the survey of the checkpoint, one stage is asked for it before: its `survey` makes it.
    A spare process is told to `prepare` for the model of a folder long before its spec comes.
    Exit codes: 0 asked to end, `FAILED` with the reason sent, `parent.ORPHANED` when the supervisor has gone. Import
    what takes seconds inside `main`, `survey` or `prepare`: the supervisor is watched before they run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_process(int(sys.argv[2]))
    spec = _await_spec(survey, prepare)
    end_with_supervisor(spec.death_fd, spec.supervisor_pid)
    logging.basicConfig(format=f"%(asctime)s {spec.stage}.{spec.epoch} %(levelname)s %(name)s: %(message)s")
    with Stage(spec) as stage:
        _obey_signals(stage)
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


def _obey_signals(stage: Stage) -> None:
    """SIGTERM only sets a flag; the wake-up descriptor ends a poll that has just begun."""
    signal.set_wakeup_fd(stage.wake_fd, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: stage.stop(gently=False))


def _run(main: Callable[[Stage], None], stage: Stage) -> int:
    try:
        main(stage)
    except ExpertFlowError as error:
        stage.fail(error)
        return FAILED
    except Exception as error:  # noqa: BLE001 - the boundary of the process: whatever it is, the supervisor hears of it
        logging.getLogger(__name__).exception("stage failed")
        stage.fail(EngineError(f"{type(error).__name__}: {error}", f"stage {stage.spec.stage}", "This is a bug"))
        return FAILED
    return 0
