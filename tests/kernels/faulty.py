"""Run the checks of the kernels on another build: python -m expertflow.tests.kernels.faulty LIBRARY.

Exit status 0 if they hold, 1 if they find a fault.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from expertflow.workers.kernels import library, native

from .checks import check_products, draw, experts_of
from .packed.fused import check_fused, check_values


def main() -> int:
    library.library_file = lambda: Path(sys.argv[1])
    kernels = native.NativeKernels.open("avx2")
    assert kernels is not None
    try:
        check_products(kernels, torch.bfloat16, (37, 83), [1, 4, 9])
        _check_experts(kernels)
        for name in ("int4", "Q4_K", "Q6_K"):
            check_values(kernels, name)
        check_fused(kernels, "int4", torch.bfloat16, True, (2, 260))
    except AssertionError:
        return 1
    return 0


def _check_experts(kernels: native.NativeKernels) -> None:
    weights = [experts_of(10 * i, 24, 40, True, False, torch.float32) for i in range(3)]
    rows, bounds = draw(0, 9, 40, dtype=torch.float32), [(0, 3), (3, 4), (4, 9)]
    products = torch.empty_like(rows)
    kernels.experts("silu", weights, bounds, rows, products)
    for own, (low, high) in zip(weights, bounds, strict=True):
        hidden = rows[low:high].double() @ own["gate_up_proj"].double().t()
        exact = (torch.nn.functional.silu(hidden[:, :24]) * hidden[:, 24:]) @ own["down_proj"].double().t()
        assert (products[low:high].double() - exact).abs().max() < 1e-5


if __name__ == "__main__":
    sys.exit(main())
