"""A handful of unlike architectures through the whole pipeline: what their rows can do must reach the scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest
from expertflow import Client, Config, Supervisor
from expertflow.tests.registry.tiny import save_tiny
from expertflow.tests.system.references import Reference, random_prompts

UNLIKE = ("deepseek_v4", "gemma4_text", "granitemoehybrid", "lfm2_moe", "minimax", "nemotron_h", "qwen2_moe")


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("model_type", UNLIKE)
def test_the_pipeline_gives_the_tokens_of_transformers(model_type: str, tmp_path: Path) -> None:
    """Prompts of all lengths, more than rows: where rows cannot be padded, the scheduler must keep lengths apart."""
    save_tiny(model_type, tmp_path)
    prompts = random_prompts(6, 64)
    config = Config.load(model=tmp_path, expert_memory="25%", batch_size=4)
    with Supervisor(config) as engine, Client(engine.address) as client:
        done = client.generate(prompts, max_new_tokens=12, eos_ids=[])
    reference = Reference(tmp_path)
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, 12) for prompt in prompts]
