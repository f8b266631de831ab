"""Make the table of a small model, as another process does at the same time, and say where it came from."""

from __future__ import annotations

import torch
from expertflow.tests.kernels.test_making import make
from expertflow.workers.kernels import measuring, workloads


def main() -> None:
    """Make the table with fewer measurements, then tell."""
    torch.set_num_threads(1)
    workloads.POOL_BYTES, measuring.ROW_STEPS = 1 << 24, (1,) * 10
    print(make().origin)  # noqa: T201 - its output is what is tested


if __name__ == "__main__":
    main()
