"""Check a recording: `python -m expertflow.runtime.verify FOLDER MODEL REVISION DTYPE DEVICE SETTINGS FORM`.

Writes a JSON line for each `Check` and `Progress`. Exit codes: 0 all hold, 1 one does not, 2 error.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from ...errors import ExpertFlowError
from ...ipc.messages import Progress
from .report import Check


def main() -> int:
    """Run the checks of the recording that `sys.argv` names; return the exit code."""
    folder, model, revision, dtype, device, settings, form = sys.argv[1:8]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from ...workers.packed.choice import ExpertsIn
    from .checks import Verification

    holds = True
    try:
        verification = Verification(
            Path(folder),
            model,
            revision,
            dtype,
            device=device,
            generation_settings=settings,
            experts_in=msgspec.convert(form, ExpertsIn),
            report=_report,
        )
        for check in verification.checks():
            _write(check)
            holds = holds and check.holds
    except ExpertFlowError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0 if holds else 1


def _report(what: str, done: int, total: int) -> None:
    _write(Progress("verify", what, done, total))


def _write(line: Check | Progress) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
