"""The table of packed kernels: every format runs, and its figures are those of its times and bytes."""

from __future__ import annotations

import pytest
import torch
from expertflow.benchmarks import packed_kernels
from expertflow.workers.kernels.native import NativeKernels


@pytest.mark.skipif(NativeKernels.open() is None, reason="no kernels of the project's own")
def test_every_format_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_kernels, "POOL_BYTES", 1)
    monkeypatch.setattr(packed_kernels, "REPEATS", 1)
    times_us = iter([200.0] + [50.0] * len(packed_kernels.FORMATS))

    def timed(works: list[packed_kernels.Work]) -> list[float]:
        for work in works:
            work(0)
        return [100.0, next(times_us)]

    monkeypatch.setattr(packed_kernels, "_best_us", timed)
    threads = torch.get_num_threads()
    table = packed_kernels.measure(512, 256, [1], list(packed_kernels.FORMATS))
    torch.set_num_threads(threads)
    rows = {row["format"]: row for row in table}
    assert rows["bfloat16, torch"]["gain"] == {"1": 0.5} and rows["Q4_0"]["gain"] == {"1": 2.0}
    assert rows["Q4_0"]["bound"] == round(32 * 2 / 18, 2) and rows["int8 channel"]["bound"] < 2
    assert rows["Q4_0"]["gb_s"] == round(3 * 512 * 256 * 18 / 32 / 50 / 1e3, 1)
    assert packed_kernels._shown(rows["Q4_0"])["1 rows"] == "50 (2.0x)"
