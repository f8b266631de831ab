"""Slots in the memory of a (fake) device, through all processes: tokens, deaths, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from expertflow import Client, Config, Supervisor
from expertflow.errors import BudgetError
from expertflow.runtime.verify.checks import Verification
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.system.awaiting import await_tokens
from expertflow.tests.system.references import Reference, random_prompts

TOKENS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("olmoe")
    save_tiny("olmoe", folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Supervisor]:
    """A fifth of the experts on the device, a third in the host store, the rest on disk."""
    budgets = {"expert_memory": "20%", "host_memory": "33%"}
    config = Config.load(model=folder, device="fake:1", restart_limit=50, record=str(folder / "record"), **budgets)
    with Supervisor(config) as engine:
        yield engine


@pytest.mark.timeout(240)
@pytest.mark.parametrize("stage", ["", "loader", "compute"])
def test_tokens_are_those_of_transformers_whoever_dies(engine: Supervisor, reference: Reference, stage: str) -> None:
    """I1b and I4: copies under way to a dead compute, and orders of a dead loader, are not missed."""
    prompts = random_prompts(6, VOCABULARY, seed=len(stage))
    with Client(engine.address) as client:
        batch = client.submit(prompts, max_new_tokens=TOKENS, eos_ids=[])
        if stage:
            await_tokens(batch, 12)
            engine.kill(stage)
        done = batch.results(timeout_s=120)
        assert client.stats().stages["loader"].counters["invalid"] == 0
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, TOKENS) for prompt in prompts]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_whole_model_in_the_host_store(folder: Path, reference: Reference) -> None:
    prompts = random_prompts(3, VOCABULARY)
    config = Config.load(model=folder, device="fake:2", tier="host", expert_memory="10%")
    with Supervisor(config) as engine, Client(engine.address) as client:
        done = client.generate(prompts, max_new_tokens=12, eos_ids=[])
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, 12) for prompt in prompts]


@pytest.mark.slow
def test_what_a_device_has_no_room_for_is_refused(folder: Path) -> None:
    """I5: compute says so, with the numbers, before it loads anything."""
    with pytest.raises(BudgetError, match=r"needs 1\.\d+ GB .*KV caches 1\.\d+ GB.* but only 1\.\d+ GB is free"):
        Supervisor(Config.load(model=folder, device="fake:0", kv_memory="1GiB")).__enter__()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_what_ran_on_a_device_is_verified_there(engine: Supervisor, folder: Path) -> None:
    """The same bits resident on the same device (I1a), deaths included, and the logits of transformers (I1b)."""
    with Client(engine.address) as client:
        client.generate(random_prompts(3, VOCABULARY), max_new_tokens=4, eos_ids=[])
    verification = Verification(folder / "record", str(folder), device="fake:7")
    resident = verification.resident()
    assert resident.holds and "fake:7" in resident.detail and verification.float32().holds
