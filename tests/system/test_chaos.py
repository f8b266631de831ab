"""Long runs with random deaths: `make chaos`."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from expertflow import Client, Config, EngineGroup, Supervisor
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.system.references import Reference, random_prompts

STAGES = ("scheduler", "predictor", "loader", "compute")


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_random_deaths_lose_and_change_nothing(tmp_path: Path, family: str, seed: int) -> None:
    """I4: ten deaths of stages drawn at random, at random moments, several close together, while 40 requests run."""
    save_tiny(family, tmp_path)
    rng = random.Random(seed)
    prompts = random_prompts(40, VOCABULARY, seed)
    config = Config.load(model=tmp_path, expert_memory="25%", batch_size=6, restart_limit=100)
    with Supervisor(config) as engine, Client(engine.address, answer_timeout_s=180) as client:
        batch = client.submit(prompts, max_new_tokens=100, eos_ids=[])
        for _ in range(10):
            wait_until = time.monotonic() + rng.choice([0.1, 1.0, 6.0])
            for _ in batch:
                if time.monotonic() > wait_until:
                    break
            engine.kill(rng.choice(STAGES))
        done = batch.results(timeout_s=300)
    reference = Reference(tmp_path)
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, 100) for prompt in prompts]


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(4))
def test_random_deaths_in_a_group_lose_and_change_nothing(tmp_path: Path, seed: int) -> None:
    """I4: of three engines one is stopped in the middle, and stages of the others die at random moments."""
    save_tiny("qwen3_moe", tmp_path)
    rng = random.Random(seed)
    prompts = random_prompts(40, VOCABULARY, seed)
    options = {"tier": ("host", "disk")[seed % 2], "expert_memory": "25%", "batch_size": 4, "restart_limit": 100}
    config = Config.load(model=tmp_path, device="fake:1,fake:2,fake:3", **options)
    with EngineGroup(config) as group, Client(group.address, answer_timeout_s=180) as client:
        batch = client.submit(prompts, max_new_tokens=60, eos_ids=[])
        engines = list(group.engines.values())
        for turn in range(10):
            wait_until = time.monotonic() + rng.choice([0.1, 1.0, 3.0])
            for _ in batch:
                if time.monotonic() > wait_until:
                    break
            if turn == 4:
                engines.pop(rng.randrange(3)).stop()
            else:
                rng.choice(engines).kill(rng.choice(STAGES))
        done = batch.results(timeout_s=300)
    reference = Reference(tmp_path)
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, 60) for prompt in prompts]
