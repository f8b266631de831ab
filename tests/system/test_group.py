"""Two engines on (fake) devices with one host store, through all processes: tokens, deaths, what is filled when."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest
from expertflow import Client, Config, EngineGroup
from expertflow.errors import BudgetError, EngineError
from expertflow.ipc.messages import Progress
from expertflow.runtime.client import Batch
from expertflow.runtime.command_line.registry import parse
from expertflow.runtime.engine import engine as engine_module
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.runtime.fakes import fail_next_setup, wait_until
from expertflow.tests.system.awaiting import await_tokens
from expertflow.tests.system.references import Reference, random_prompts

TOKENS = 20
NEWS: list[Progress] = []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("olmoe")
    save_tiny("olmoe", folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest.fixture(scope="module")
def group(folder: Path) -> Iterator[EngineGroup]:
    config = Config.load(model=folder, device="fake:1,fake:2", tier="host", expert_memory="20%", batch_size=4)
    with EngineGroup(config, NEWS.append) as group:
        yield group


def tokens(batch: Batch) -> list[list[int]]:
    return [list(each.token_ids) for each in batch.results(timeout_s=120)]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("dead", ["loader", pytest.param("compute", marks=pytest.mark.slow)])
def test_tokens_are_those_of_transformers_whichever_engine_computes_and_dies(
    group: EngineGroup, reference: Reference, dead: str
) -> None:
    """I1b, I3 and I4: in the middle a stage of one engine is killed; if it was compute, a loader of the other too."""
    prompts = random_prompts(12, VOCABULARY)
    with Client(group.address) as client:
        batch = client.submit(prompts, max_new_tokens=TOKENS, eos_ids=[])
        await_tokens(batch, 20)
        group.engines["fake:1"].kill(dead)
        if dead == "compute":
            group.engines["fake:2"].kill("loader")
        assert tokens(batch) == [reference.greedy(prompt, TOKENS) for prompt in prompts]
        assert client.stats().restarts[f"fake:1/{dead}"] == 1


@pytest.mark.timeout(240)
def test_the_store_is_filled_once_and_by_no_successor(group: EngineGroup) -> None:
    """What stands in it now is not read from the files again: neither by the other engine, nor by a new loader."""
    fills = {news.stage for news in NEWS if news.what == "filling the host store"}
    assert fills == {"loader (fake:1)"}
    assert group._shared and group._shared.store
    arena = group._shared.store.arena
    with mmap.mmap(arena.fd, arena.size_bytes) as store:
        before, store[:] = store[:], bytes(len(store))
        for device, engine in group.engines.items():
            epoch = engine.snapshot().restarts["loader"] + 1
            engine.kill("loader")
            wait_until(lambda engine=engine, epoch=epoch: engine.snapshot().stages["loader"].epoch > epoch)
            assert not any(store[:]), device
        store[:] = before
    for engine in group.engines.values():  # of what ran before
        wait_until(lambda engine=engine: engine.snapshot().stages["scheduler"].done)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("option", "value"), [("policy", "lfu"), pytest.param("expert_memory", "50%", marks=pytest.mark.slow)]
)
def test_a_reload_under_load_changes_one_engine_after_the_other_and_no_text(
    group: EngineGroup, reference: Reference, caplog: pytest.LogCaptureFixture, option: str, value: str
) -> None:
    """I1a and I4: by the command, in the middle of a batch; no engine begins before the one before it is ready."""
    prompts = random_prompts(12, VOCABULARY, seed=7)
    epochs = {device: loader_epoch(group, device) for device in group.engines}
    with Client(group.address) as client, caplog.at_level(logging.INFO):
        batch = client.submit(prompts, max_new_tokens=TOKENS, eos_ids=[])
        await_tokens(batch, 20)
        assert parse(["reload", group.address, f"--{option.replace('_', '-')}", value]).run() == 0
        assert tokens(batch) == [reference.greedy(prompt, TOKENS) for prompt in prompts]
    told = [each.message.partition(": ")[2] for each in caplog.records if "reload" in each.message]
    assert told == [f"reload: {option} = {value}", "reload done"] * 2
    for device, engine in group.engines.items():
        assert getattr(engine.resources.config, option) == value
        wait_until(lambda engine=engine: engine.snapshot().facts["supervisor"]["state"] == "ready")
        wait_until(lambda device=device: loader_epoch(group, device) == epochs[device] + 1)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_reload_that_fails_under_load_changes_no_engine_and_no_text(
    group: EngineGroup, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second engine's compute and loader have ended when its new setup fails; the first one's have to go back."""
    prompts = random_prompts(12, VOCABULARY, seed=9)
    before = [engine.resources.config.expert_memory for engine in group.engines.values()]
    fail_next_setup(monkeypatch, group.engines["fake:2"], BudgetError("needs 1 GB", "memory"))
    with Client(group.address) as client:
        batch = client.submit(prompts, max_new_tokens=TOKENS, eos_ids=[])
        await_tokens(batch, 20)
        with pytest.raises(BudgetError, match=r"memory of fake:2: needs 1 GB\. fake:1 has its earlier settings again"):
            parse(["reload", group.address, "--expert-memory", "30%"]).run()
        assert tokens(batch) == [reference.greedy(prompt, TOKENS) for prompt in prompts]
    assert [engine.resources.config.expert_memory for engine in group.engines.values()] == before


def loader_epoch(group: EngineGroup, device: str) -> int:
    return group.engines[device].snapshot().stages["loader"].epoch


@pytest.mark.timeout(240)
def test_one_engine_goes_on_alone(group: EngineGroup, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of this module: the engine that filled the store is stopped in the middle of a batch, then the other."""
    monkeypatch.setattr(engine_module, "GENTLE", engine_module.StopTimes(0.5, 1.0, 5.0))
    prompts = random_prompts(8, VOCABULARY, seed=3)
    with Client(group.address) as client:
        batch = client.submit(prompts, max_new_tokens=TOKENS, eos_ids=[])
        await_tokens(batch, 20)
        group.engines["fake:1"].stop()
        assert tokens(batch) == [reference.greedy(prompt, TOKENS) for prompt in prompts]
        group.engines["fake:2"].stop()
        with pytest.raises(EngineError):
            client.generate(prompts, max_new_tokens=TOKENS)
    assert group.wait(0)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_engine_whose_scheduler_cannot_live_leaves_its_requests_to_the_other(
    folder: Path, reference: Reference
) -> None:
    """Killed without a word, beyond its restarts; of a store that each engine has a part of."""
    prompts = random_prompts(12, VOCABULARY, seed=5)
    config = Config.load(model=folder, device="fake:1,fake:2", host_memory="60%", restart_limit=0, batch_size=4)
    with EngineGroup(config) as group, Client(group.address) as client:
        batch = client.submit(prompts, max_new_tokens=TOKENS, eos_ids=[])
        await_tokens(batch, 20)
        group.engines["fake:2"].kill("scheduler")
        assert tokens(batch) == [reference.greedy(prompt, TOKENS) for prompt in prompts]
        assert group.engines["fake:2"].failure and group.failure is None


@pytest.mark.slow
def test_an_engine_that_does_not_fit_its_device_is_no_group(folder: Path) -> None:
    with pytest.raises(BudgetError, match="fake:1"):
        EngineGroup(Config.load(model=folder, device="fake:1,fake:0", kv_memory="1GiB")).__enter__()
