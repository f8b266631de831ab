"""A traced engine: its trace is what really ran, also when stages die."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from expertflow import Client, Config, Supervisor
from expertflow.errors import UsageError
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.system.awaiting import await_tokens
from expertflow.tests.system.references import random_prompts
from expertflow.workers.model.architecture import experts_modules
from expertflow.workers.predictor.routing_recording import read_recording
from expertflow.workers.traces.reading import read_hidden, read_step_log, read_trace
from expertflow.workers.traces.routing import read_routing
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3_moe")
    save_tiny("qwen3_moe", folder)
    return folder


def test_a_trace_has_the_routes_of_the_recording_and_the_states_of_transformers(model: Path, tmp_path: Path) -> None:
    """Padded prefills included: seven prompts of different lengths in units of four."""
    config = Config.load(
        model=model, batch_size=4, record=str(tmp_path / "record"), trace=str(tmp_path / "trace"), trace_hidden=0.5
    )
    prompts = random_prompts(7, VOCABULARY)
    with Supervisor(config) as engine, Client(engine.address) as client:
        batch = client.submit(prompts, max_new_tokens=10, eos_ids=[])
        next(iter(batch))
        assert read_trace(tmp_path / "trace").tokens > 0  # while it runs
        done = batch.results()
    trace, hidden = read_hidden(tmp_path / "trace")
    texts = [prompt + list(each.token_ids)[:-1] for prompt, each in zip(prompts, done, strict=True)]
    recorded = _routes_of_recording(tmp_path / "record", layers=trace.layers, experts=trace.expert_count)
    for number, text in enumerate(texts):
        begin, end = trace.offsets[number : number + 2]
        assert trace.token_ids[begin:end].tolist() == text
        assert np.array_equal(trace.routes[begin:end], recorded[number][: len(text)])
    assert trace.weights is not None and np.allclose(trace.weights.sum(axis=2), 1, atol=2e-3)
    assert 0.3 < len(hidden.tokens) / trace.tokens < 0.7
    states = np.concatenate([_states_of_transformers(model, text) for text in texts])
    assert np.allclose(hidden.states, states[hidden.tokens], rtol=2e-3, atol=2e-3)


def _routes_of_recording(folder: Path, layers: int, experts: int) -> list[list[np.ndarray]]:
    """By row and position."""
    routes: dict[int, dict[int, np.ndarray]] = defaultdict(dict)
    for used in read_recording(folder):
        routing = read_routing(used, layers, experts)
        assert routing is not None
        for row, position, route in zip(used.rows, used.positions, routing, strict=True):
            routes[row][position] = route
    return [[routes[row][position] for position in sorted(routes[row])] for row in sorted(routes)]


def _states_of_transformers(folder: Path, text: list[int]) -> np.ndarray:
    """[tokens, layers, width]: the input of each experts module."""
    model, seen = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), []
    for _, module in experts_modules(model):
        module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].reshape(len(text), -1)))
    with torch.inference_mode():
        model(torch.tensor([text]))
    return torch.stack(seen, dim=1).numpy()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_deaths_neither_lose_nor_repeat_a_token_of_a_trace(model: Path, tmp_path: Path) -> None:
    config = Config.load(model=model, batch_size=4, trace=str(tmp_path / "trace"), restart_limit=50)
    prompts = random_prompts(6, VOCABULARY, seed=1)
    with Supervisor(config) as engine, Client(engine.address) as client:
        batch = client.submit(prompts, max_new_tokens=80, eos_ids=[])
        for stage in ("compute", "scheduler", "predictor"):
            await_tokens(batch, 30)
            engine.kill(stage)
        done = batch.results(timeout_s=120)
    trace = read_trace(tmp_path / "trace")
    expected = sorted(prompt + list(each.token_ids)[:-1] for prompt, each in zip(prompts, done, strict=True))
    spans = zip(trace.offsets[:-1], trace.offsets[1:], strict=True)
    assert sorted(trace.token_ids[begin:end].tolist() for begin, end in spans) == expected
    log = read_step_log(tmp_path / "trace")
    assert log.planned.any() and log.hinted.any() and (log.compute_ns > 0).all()
    assert (tmp_path / "trace" / "compute.2.msgpack").is_file()


def test_a_second_engine_does_not_write_into_a_trace(model: Path, tmp_path: Path) -> None:
    (tmp_path / "compute.1.msgpack").write_bytes(b"")
    with pytest.raises(UsageError, match="holds a trace already"):
        Supervisor(Config.load(model=model, trace=str(tmp_path))).start()
