"""The systems that ExpertFlow is compared with are presets of the same runtime: each is exact, each is what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from expertflow import Client, Config, Supervisor
from expertflow.runtime.replay.ledger_log import replay_ledger_log
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.system.references import Reference, random_prompts
from expertflow.workers.predictor.t5.file import FIRST, T5Shape
from expertflow.workers.predictor.training.loop import Effort
from expertflow.workers.predictor.training.t5 import train_t5
from expertflow.workers.traces.reading import read_trace

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


def run(folder: Path, record: Path, preset: str, tokens: int = TOKENS, **options: Any) -> list[list[int]]:
    config = Config.load(preset, model=folder, record=str(record), **({"expert_memory": "30%"} | options))
    with Supervisor(config) as engine, Client(engine.address) as client:
        done = client.generate(PROMPTS, max_new_tokens=tokens, eos_ids=[])
    return [list(each.token_ids) for each in done]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("moe-infinity", {}),
        pytest.param("cache-moe", {}, marks=pytest.mark.slow),
        pytest.param("on-demand", {"policy": "lfu"}, marks=pytest.mark.slow),
        pytest.param("on-demand", {"policy": "lfru", "slot_sharing": "layer"}, marks=pytest.mark.slow),
        pytest.param("on-demand", {"policy": "least-stale"}, marks=pytest.mark.slow),
        pytest.param("on-demand", {"policy": "static"}, marks=pytest.mark.slow),
        pytest.param("cpu-disk", {"predictor": "previous", "rank_victims": "always"}, marks=pytest.mark.slow),
        ("cpu-host", {"link_rate": "50MB", "predictor": "table"}),
        ("cpu-host", {"link": "dma", "link_rate": "50MB", "predictor": "table"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_every_baseline_is_exact_and_its_ledger_can_be_asked_again(
    folder: Path, expected: list[list[int]], tmp_path: Path, preset: str, options: dict[str, Any]
) -> None:
    """Tokens of transformers (I1b, I2); the log of the ledger, replayed, comes to the same statistics."""
    assert run(folder, tmp_path, preset, **options) == expected
    reissue_copies = replay_ledger_log(tmp_path / "ledger.1.msgpack")
    assert reissue_copies.marks and reissue_copies.same and reissue_copies.replayed["loads"] > 0


@pytest.mark.timeout(240)
def test_se_moe_loads_whole_layers_whatever_the_routing(
    folder: Path, expected: list[list[int]], tmp_path: Path
) -> None:
    """Exact, with more loads than the same slots filled on demand, and of experts that nobody routed to."""
    loads = {}
    for preset in ("se-moe", "on-demand"):
        assert run(folder, tmp_path / preset, preset, expert_memory="70%") == expected
        replayed = replay_ledger_log(tmp_path / preset / "ledger.1.msgpack")
        assert replayed.marks and replayed.same
        loads[preset] = replayed.recorded
    assert loads["se-moe"]["prefetches"] > 0 == loads["on-demand"]["prefetches"]
    assert loads["se-moe"]["loads"] > loads["on-demand"]["loads"]
    assert loads["se-moe"]["wasted"] > 0 == loads["on-demand"]["wasted"]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_papers_cache_and_its_transformer_are_exact(
    folder: Path, expected: list[list[int]], tmp_path: Path
) -> None:
    """plec: what the transformer of the paper foretells, learned from this model's own trace, is acted on.

    The link is slow, or steps of so small a model would be over before anything of them is foretold. Most experts have
    a slot, since misses come first on a link: with few, every transfer of this model is a miss.
    """
    run(folder, tmp_path / "first", "on-demand", trace=str(tmp_path / "trace"))
    trace = read_trace(tmp_path / "trace")
    shape = T5Shape(
        layers=trace.layers, experts=trace.expert_count, top_k=trace.top_k, vocabulary=FIRST + VOCABULARY,
        inner=32, blocks=1, heads=2, head=8, window=32,
    )  # fmt: skip
    train_t5(trace, Effort(minutes=1, epochs=300), lambda *_: None, shape).save(tmp_path / "paper.npz")
    slow = {"tier": "host", "link_rate": "3MB", "expert_memory": "70%", "predictor_file": str(tmp_path / "paper.npz")}
    tokens = run(folder, tmp_path, "plec", 4 * TOKENS, **slow)
    assert [each[:TOKENS] for each in tokens] == expected
    reissue_copies = replay_ledger_log(tmp_path / "ledger.1.msgpack")
    assert reissue_copies.same and reissue_copies.replayed["prefetches"] > 0 and reissue_copies.replayed["useful"] > 0
