"""A live engine is asked how it does, changed while it generates, and drained."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Thread

import pytest
from expertflow import Client, Config, Supervisor
from expertflow.errors import BudgetError, EngineError
from expertflow.runtime.command_line.registry import parse
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.system.awaiting import await_tokens
from expertflow.tests.system.references import Reference, random_prompts

TOKENS, LONG = 120, 400
SAMPLED = {"temperature": 0.8, "seed": 5, "max_new_tokens": TOKENS, "eos_ids": []}


FEW = [{"expert_memory": "50%"}, {"policy": "lru", "predictor": "table"}]
MANY = [*FEW, {"expert_memory": "100%"}, {"predictor": "none"}, {"expert_memory": "10%", "policy": "lfu"}]
"""With all experts in slots, these lie elsewhere in their slots."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("reloads", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def test_reloads_while_it_generates_lose_and_change_nothing(
    reloads: list[dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """I1a and I4: budget, policy and predictor change in the middle of outputs, greedy and drawn ones."""
    save_tiny("olmoe", tmp_path)
    prompts = random_prompts(4, VOCABULARY, seed=3)
    with Supervisor(Config.load(model=tmp_path, expert_memory="25%")) as engine, Client(engine.address) as client:
        drawn = client.submit(prompts[:2], **SAMPLED)
        batch = client.submit(prompts, max_new_tokens=TOKENS, eos_ids=[])
        for changes in reloads:
            await_tokens(batch, 8)
            engine.reload(**changes)
        done = [list(each.token_ids) for each in batch.results(timeout_s=240)]
        drawn_ids = [list(each.token_ids) for each in drawn.results(timeout_s=240)]
        again = client.submit(prompts[:2], **SAMPLED).results(timeout_s=240)
        assert sum(client.stats().restarts.values()) == 0
        assert parse(["status", engine.address, "--json"]).run() == 0
        status = json.loads(capsys.readouterr().out)
        with pytest.raises(BudgetError, match="holds no expert"):
            parse(["reload", engine.address, "--expert-memory", "1B"]).run()
        check_drain(engine, client, prompts)
    reference = Reference(tmp_path)
    assert done == [reference.greedy(prompt, TOKENS) for prompt in prompts]
    assert drawn_ids == [list(each.token_ids) for each in again]
    assert status["options"] == {name: value for changes in reloads for name, value in changes.items()}
    assert status["healthy"] and status["stages"]["scheduler"]["epoch"] == 1
    budgets = [changes for changes in reloads if "expert_memory" in changes]
    assert status["stages"]["compute"]["epoch"] == 1 + len(budgets)


def check_drain(engine: Supervisor, client: Client, prompts: list[list[int]]) -> None:
    """What was accepted is finished; what is new is refused with a typed error; the engine ends by itself."""
    accepted = client.submit(prompts, max_new_tokens=LONG, eos_ids=[])
    await_tokens(accepted, 1)
    codes: list[int] = []
    drain = Thread(target=lambda: codes.append(parse(["drain", engine.address, "--deadline", "200"]).run()))
    with Client(engine.address) as other:
        drain.start()
        wait_until(lambda: not engine.snapshot().stages["scheduler"].counters["accepting"])
        (refused,) = other.submit([prompts[0]], max_new_tokens=1).results(timeout_s=60, return_errors=True)
    assert isinstance(refused, EngineError) and "accepts nothing new" in refused.what
    assert {each.finish_reason for each in accepted.results(timeout_s=240)} == {"length"}
    drain.join()
    assert codes == [0] and engine.wait(60)
