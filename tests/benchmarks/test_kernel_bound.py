"""The bounds of a step's arithmetic: plausible rates, and a row for each batch size."""

from __future__ import annotations

import pytest
import torch
from expertflow.benchmarks import kernel_bound
from expertflow.workers.kernels.native import NativeKernels


def test_rates_are_those_of_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_bound, "_best_ms", lambda work: 100.0)
    assert kernel_bound.measure_bounds() == {"read_gb_s": 4.0, "float32_gmac_s": 5.4}


@pytest.mark.skipif(NativeKernels.open() is None, reason="no kernels of the project's own")
def test_a_step_uses_all_experts_once_there_are_rows_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_bound, "WIDTH", 64)
    monkeypatch.setattr(kernel_bound, "INNER", 32)
    monkeypatch.setattr(kernel_bound, "REPEATS", 1)
    few, many = kernel_bound.measure_rows([1, 32])
    assert (few["rows_an_expert"], many["rows_an_expert"]) == (1, 4)
    assert many["experts_ms"] >= 0 and many["linear_ms"] >= 0 and many["attention_ms"] >= 0


@pytest.mark.skipif(NativeKernels.open() is None, reason="no kernels of the project's own")
def test_the_gain_of_threads_is_a_ratio_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_bound, "WIDTH", 64)
    monkeypatch.setattr(kernel_bound, "INNER", 32)
    monkeypatch.setattr(kernel_bound, "READ_BYTES", 4000)
    times_ms = iter([3.0, 2.0] * kernel_bound.GAIN_TURNS * 3)
    monkeypatch.setattr(kernel_bound, "_best_ms", lambda work, clock: next(times_ms))
    threads = torch.get_num_threads()
    rows = kernel_bound.measure_gains(2, [1])
    torch.set_num_threads(threads)
    assert [row["work"] for row in rows] == ["reading memory", "float32 product", "experts, batch 1"]
    assert all(row["gain"] == 1.5 for row in rows)
