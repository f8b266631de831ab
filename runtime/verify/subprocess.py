"""Runs `expertflow.runtime.verify` in a process of its own, since it needs torch and all experts in memory.

The interface: `python -m expertflow.runtime.verify FOLDER MODEL REVISION DTYPE DEVICE SETTINGS FORM` writes one
`Check` or one `Progress` a line as JSON to stdout. It exits with 0 (all hold), 1 (one does not) or 2 (nothing could be
checked, and stderr says why).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from rich.console import Console

from ...configs.schema import Config
from ...errors import EngineError, ExpertFlowError
from ...ipc.messages import Progress
from ..engine.budgets import packing_choice
from ..engine.children import describe_exit
from ..engine.stages import stage_plans
from ..monitor.progress import ProgressView
from .report import Check

NOTHING_CHECKED = 2
STARTING = "starting to check"


def show_checks(recording: Path, config: Config, console: Console) -> bool:
    """Run the checks and print each; return whether all hold. Raises what `run_checks` raises."""
    holds = True
    with ProgressView() as view:
        for check in run_checks(recording, config, view):
            answer = "yes" if check.holds else "NO"
            console.print(f"{check.claim}: {answer} ({check.detail})", soft_wrap=True)
            holds = holds and check.holds
    return holds


def run_checks(
    recording: Path, config: Config, report: Callable[[Progress], None] = lambda progress: None
) -> Iterator[Check]:
    """Yield the checks as they are done; `report` is called with the progress meanwhile.

    Raises ExpertFlowError if nothing could be checked, EngineError if the process died.
    """
    command = [sys.executable, "-P", "-m", "expertflow.ipc.stage.run_with_parent", str(os.getpid())]  # ends with us
    command += ["expertflow.runtime.verify", str(recording)]
    command += [config.model, config.revision, config.dtype, config.device, config.generation_settings]
    command += [packing_choice(config).experts_in]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        env={**os.environ, **_compute_environment(config)},
        process_group=0,  # Ctrl-C reaches us alone
    )
    refuted = False
    with process:
        try:
            report(Progress("verify", STARTING, 0, 1))
            for line in process.stdout or ():
                report(Progress("verify", STARTING, 1, 1))
                match msgspec.json.decode(line, type=Check | Progress):
                    case Progress() as progress:
                        report(progress)
                    case Check() as check:
                        refuted = refuted or not check.holds
                        yield check
            message = process.stderr.read().decode("utf-8", "replace").strip() if process.stderr else ""
        except BaseException:
            process.kill()
            raise
    if process.returncode == NOTHING_CHECKED:
        raise ExpertFlowError(message, "verification", "The run itself has ended well; only its check was not possible")
    if process.returncode != int(refuted):  # also when Python ends with 1 because of a traceback
        raise EngineError(f"verification {describe_exit(process.returncode)}", "verification", message)


def _compute_environment(config: Config) -> dict[str, str]:
    """Return the environment of the compute stage: another number of threads may split sums in another way."""
    return next(plan.environment for plan in stage_plans(config) if plan.stage == "compute")
