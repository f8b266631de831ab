"""`python -m expertflow.runtime.verify FOLDER MODEL REVISION DTYPE DEVICE SETTINGS`: one JSON `Check` a line.

Exit codes: 0 all hold, 1 one does not, 2 error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from ...errors import ExpertFlowError


def main() -> int:
    folder, model, revision, dtype, device, settings = sys.argv[1:7]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from .checks import Verification

    holds = True
    try:
        verification = Verification(Path(folder), model, revision, dtype, device=device, generation_settings=settings)
        for check in verification.checks():
            sys.stdout.write(msgspec.json.encode(check).decode() + "\n")
            sys.stdout.flush()
            holds = holds and check.holds
    except ExpertFlowError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
