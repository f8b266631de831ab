"""I5 on the widened model: the memory of all processes stays within skeleton + budgets + an allowance a process."""

from __future__ import annotations

from pathlib import Path

import pytest
from expertflow import Client, Config, Supervisor
from expertflow.configs.sizes import parse_size
from expertflow.runtime.engine.process_memory import pss_bytes
from expertflow.workers.checkpoint.widen import widen

MODEL = Path(__file__).parents[2] / "examples" / "model"
TORCH_BYTES, PLAIN_BYTES = 450e6, 80e6
PLAIN_PROCESSES = ("supervisor", "scheduler", "predictor", "loader")


@pytest.mark.timeout(240)
def test_all_processes_stay_within_skeleton_budgets_and_allowance(tmp_path: Path) -> None:
    """A process that held the model, a second copy of it or a growing cache would go far beyond."""
    widen(MODEL, tmp_path / "widened", 64)
    config = Config.load(model=tmp_path / "widened", expert_memory="25%", kv_memory="64MiB", batch_size=8)
    with Supervisor(config) as engine, Client(engine.address) as client:
        facts = client.stats().facts["loader"]
        slots_bytes = int(facts["slots"]) * int(facts["slot_bytes"])
        batch = client.submit([list(range(3, 60 + each)) for each in range(8)], max_new_tokens=24, eos_ids=[])
        peak_bytes = max(_pss_bytes(client) for event in batch if event.index == 0)
        peak_bytes = max(peak_bytes, _pss_bytes(client))
    skeleton_bytes = (MODEL / "model.safetensors").stat().st_size  # more than it: the small experts are in there too
    budget = skeleton_bytes + slots_bytes + parse_size("64MiB", "").of(0)
    assert slots_bytes < 0.3e9
    assert peak_bytes <= budget + TORCH_BYTES + len(PLAIN_PROCESSES) * PLAIN_BYTES


def _pss_bytes(client: Client) -> int:
    """The supervisor lives in the test's process, which imports torch for other tests: its allowance is all it gets.

    A snapshot tells the memory of some seconds ago.
    """
    return sum(pss_bytes(stats.pid) for stats in client.stats().stages.values()) + int(PLAIN_BYTES)
