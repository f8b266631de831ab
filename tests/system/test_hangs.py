"""A stage that hangs is found and replaced; those that wait for it are left alone (R10)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from expertflow import Client, Config, Supervisor
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.system.awaiting import await_tokens
from expertflow.tests.system.references import Reference, random_prompts

TOKENS = 100
PATIENCE_S = 4
REST, SLOW = ("compute", "scheduler", "predictor"), pytest.mark.slow


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "stage",
    ["loader", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("compute", "scheduler", "predictor"))],
)
def test_a_stage_that_stands_still_costs_a_pause_not_a_token(tmp_path: Path, stage: str) -> None:
    """I4: the process lives and does nothing, as in a deadlock; of all stages only this one is started again."""
    save_tiny("olmoe", tmp_path)
    prompts = random_prompts(4, VOCABULARY, seed=3)
    config = Config.load(model=tmp_path, expert_memory="25%", hang_timeout_s=PATIENCE_S)
    with Supervisor(config) as engine, Client(engine.address) as client:
        batch = client.submit(prompts, max_new_tokens=TOKENS, eos_ids=[])
        await_tokens(batch, 20)
        os.kill(client.stats().stages[stage].pid, signal.SIGSTOP)
        done = batch.results(timeout_s=120)
        restarts = await_restarts(client)
    assert {name: count for name, count in restarts.items() if count} == {stage: 1}
    reference = Reference(tmp_path)
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, TOKENS) for prompt in prompts]


def await_restarts(client: Client) -> dict[str, int]:
    """Nobody waits for a predictor: that it hangs may be found after the last token."""
    deadline = time.monotonic() + 30
    while not any((restarts := client.stats().restarts).values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return restarts
