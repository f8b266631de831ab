"""Run a module that ends with the process PID: `python -m expertflow.ipc.stage.run_with_parent PID MODULE [ARGUMENT…]`.

For helpers that know nothing of supervisors; a stage does this by itself (`entry`).
"""

from __future__ import annotations

import runpy
import sys

from .parent import end_with_process


def main() -> None:
    _, pid, module, *arguments = sys.argv
    end_with_process(int(pid))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
