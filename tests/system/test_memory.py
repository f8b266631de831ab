"""I5 on the widened model: the memory of all processes stays within skeleton + budgets + an allowance a process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from expertflow import Client, Config, Supervisor
from expertflow.runtime.engine.process_memory import pss_bytes
from expertflow.workers.checkpoint.widen import widen
from expertflow.workers.quantize.plan import CHANNEL, Precision
from expertflow.workers.quantize.writing import quantise_checkpoint

pytestmark = pytest.mark.usefixtures("new_processes")  # forks share memory with each other

MODEL = Path(__file__).parents[2] / "examples" / "model"
TORCH_BYTES, PLAIN_BYTES = 450e6, 80e6
PLAIN_PROCESSES = ("supervisor", "scheduler", "predictor", "loader")
ALLOWANCE_BYTES = TORCH_BYTES + len(PLAIN_PROCESSES) * PLAIN_BYTES
NEAR_ALLOWANCE_BYTES = 680e6
"""What the processes took (592 MB) and a little more: near enough to notice a dequantised copy."""
KV_BYTES = 64 * 2**20
SKELETON_BYTES = (MODEL / "model.safetensors").stat().st_size
"""More than it: the small experts are in there too."""


@pytest.mark.timeout(240)
def test_all_processes_stay_within_skeleton_budgets_and_allowance(tmp_path: Path) -> None:
    """A process that held the model, a second copy of it or a growing cache would go far beyond."""
    widen(MODEL, tmp_path / "widened", 64)
    peak_bytes, slots_bytes = peak_and_slots(tmp_path / "widened", expert_memory="25%")
    assert slots_bytes < 0.3e9
    assert peak_bytes <= SKELETON_BYTES + slots_bytes + KV_BYTES + ALLOWANCE_BYTES


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("one_thread")
def test_packed_experts_take_the_bytes_that_they_are_stored_in(tmp_path: Path) -> None:
    """All of them are held: dequantised ones, in one process, would be 0.18 GB more than the budget."""
    widen(MODEL, tmp_path / "widened", 16)
    quantise_checkpoint(tmp_path / "widened", tmp_path / "small", Precision(4, CHANNEL), lambda *progress: None)
    peak_bytes, slots_bytes = peak_and_slots(tmp_path / "small", expert_memory="100%", experts_in="packed")
    assert slots_bytes < 0.07e9
    assert peak_bytes <= SKELETON_BYTES + slots_bytes + KV_BYTES + NEAR_ALLOWANCE_BYTES


def peak_and_slots(model: Path, **options: Any) -> tuple[int, int]:
    """Decode eight rows; return the peak of the memory (PSS) of all processes and the slots' size, both in bytes."""
    config = Config.load(model=model, kv_memory="64MiB", batch_size=8, **options)
    with Supervisor(config) as engine, Client(engine.address) as client:
        facts = client.stats().facts["loader"]
        batch = client.submit([list(range(3, 60 + each)) for each in range(8)], max_new_tokens=24, eos_ids=[])
        peak_bytes = max(_pss_bytes(client) for event in batch if event.index == 0)
        return max(peak_bytes, _pss_bytes(client)), int(facts["slots"]) * int(facts["slot_bytes"])


def _pss_bytes(client: Client) -> int:
    """The supervisor lives in the test's process, which imports torch for other tests: its allowance is all it gets.

    A snapshot tells the memory of some seconds ago.
    """
    return sum(pss_bytes(stats.pid) for stats in client.stats().stages.values()) + int(PLAIN_BYTES)
