"""Runs one part of the check in this process: `python -m expertflow.benchmarks.gpu.part PART FOLDER`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from .parts import PARTS
from .results import is_rehearsal, save_result
from .under_test import under_test


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    part = next(part for part in PARTS if part.name == name)
    began = time.monotonic()
    found = part.run(under_test(is_rehearsal(folder)), folder)
    save_result(folder, name, found | {"took_s": round(time.monotonic() - began, 1)})


if __name__ == "__main__":
    main()
