"""Long runs with random deaths: `make chaos`."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from expertflow import Client, Config, Supervisor

from tests.families import VOCABULARY, save_tiny
from tests.system.references import Reference, random_prompts

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
