"""Pregated: gates trained on an engine's own trace name the next layer's experts, and change no token (I2)."""

from __future__ import annotations

from pathlib import Path

import pytest
from expertflow import Client, Config, Supervisor
from expertflow.errors import UsageError
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.system.references import Reference, random_prompts
from expertflow.workers.gates.training import GateOptions, train_gates
from expertflow.workers.traces.reading import read_step_log


def run(config: Config, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    with Supervisor(config) as engine, Client(engine.address) as client:
        done = client.generate(prompts, max_new_tokens, eos_ids=[])
    return [list(each.token_ids) for each in done]


@pytest.mark.timeout(240)
def test_gates_from_a_trace_hint_and_change_no_token(tmp_path: Path) -> None:
    model, gates = tmp_path / "model", tmp_path / "gates"
    save_tiny("qwen3_moe", model)
    first = Config.load(model=model, trace=str(tmp_path / "first"), trace_hidden=1.0)
    run(first, random_prompts(40, VOCABULARY, seed=1, longest=100), 1)
    train_gates(tmp_path / "first", gates, GateOptions(bottleneck=8, epochs=2))
    second = Config.load(
        model=model, hints="gates", gates_file=str(gates), trace=str(tmp_path / "second"), predictor="none"
    )
    prompts = random_prompts(6, VOCABULARY)
    reference = Reference(model)
    assert run(second, prompts, 12) == [reference.greedy(prompt, 12) for prompt in prompts]
    log = read_step_log(tmp_path / "second")
    assert log.hinted[log.decoded].all() and not log.planned.any()
    assert not log.hints[:, 0].any() and log.hints[:, 1:].any()  # nobody names the experts of the first layer
    other = tmp_path / "other"
    save_tiny("qwen3_moe", other, seed=1)
    with pytest.raises(UsageError, match="another model"):
        Supervisor(Config.load(model=other, hints="gates", gates_file=str(gates))).start()
