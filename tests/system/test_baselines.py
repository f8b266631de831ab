"""The systems that ExpertFlow is compared with are presets of the same runtime: each is exact, each is what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from expertflow import Client, Config, Supervisor
from expertflow.runtime.replay.ledger_log import replay_ledger_log

from tests.families import VOCABULARY, save_tiny
from tests.system.references import Reference, random_prompts

PROMPTS = random_prompts(5, VOCABULARY)
TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("olmoe")
    save_tiny("olmoe", folder)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    reference = Reference(folder)
    return [reference.greedy(prompt, TOKENS) for prompt in PROMPTS]


def run(folder: Path, record: Path, preset: str, **options: Any) -> list[list[int]]:
    config = Config.load(preset, model=folder, record=str(record), **({"expert_memory": "30%"} | options))
    with Supervisor(config) as engine, Client(engine.address) as client:
        done = client.generate(PROMPTS, max_new_tokens=TOKENS, eos_ids=[])
    return [list(each.token_ids) for each in done]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("cache-moe", {}),
        ("se-moe", {}),
        ("moe-infinity", {}),
        ("on-demand", {}),
        ("on-demand", {"policy": "lfu"}),
        ("on-demand", {"policy": "lfru", "slot_sharing": "layer"}),
        ("on-demand", {"policy": "least-stale"}),
        ("on-demand", {"policy": "static"}),
        ("cpu-disk", {"predictor": "previous", "rank_victims": "always"}),
        ("cpu-host", {"link_rate": "50MB", "predictor": "table"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_every_baseline_is_exact_and_its_ledger_can_be_asked_again(
    folder: Path, expected: list[list[int]], tmp_path: Path, preset: str, options: dict[str, str]
) -> None:
    """Tokens of transformers (I1b, I2); the log of the ledger, replayed, comes to the same statistics."""
    assert run(folder, tmp_path, preset, **options) == expected
    again = replay_ledger_log(tmp_path / "ledger.1.msgpack")
    assert again.marks and again.same and again.replayed["loads"] > 0


def test_se_moe_loads_whole_layers_whatever_the_routing(folder: Path, tmp_path: Path) -> None:
    """More loads than the same slots filled on demand: that is what its ring costs."""
    loads = {}
    for preset in ("se-moe", "on-demand"):
        run(folder, tmp_path / preset, preset, expert_memory="70%")
        loads[preset] = replay_ledger_log(tmp_path / preset / "ledger.1.msgpack").recorded
    assert loads["se-moe"]["prefetches"] > 0 == loads["on-demand"]["prefetches"]
    assert loads["se-moe"]["loads"] > loads["on-demand"]["loads"]
