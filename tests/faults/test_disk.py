"""Disks that fail, answer late or in part, fill up, or give back other bytes than they were given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from expertflow import Client, Config, Supervisor
from expertflow.errors import CheckpointError, EngineError
from expertflow.tests.faults.shim import DELAY, EIO, ENOSPC, SHORT, Faults
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.system.awaiting import await_tokens
from expertflow.tests.system.references import Reference, random_prompts
from expertflow.workers.surveyor.surveyor import survey_checkpoint

pytestmark = pytest.mark.timeout(300)
TOKENS = 30
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny("olmoe", folder)
    return folder


@pytest.fixture(scope="module")
def right(model: Path) -> list[list[int]]:
    reference = Reference(model)
    return [reference.greedy(prompt, TOKENS) for prompt in random_prompts(3, VOCABULARY, seed=3)]


def generate(address: str, tokens: int = TOKENS) -> list[list[int]]:
    with Client(address) as client:
        done = client.submit(random_prompts(3, VOCABULARY, seed=3), max_new_tokens=tokens, eos_ids=[])
        return [list(each.token_ids) for each in done.results(timeout_s=200)]


def counter(engine: Supervisor, name: str) -> int | float:
    """A counter of the loader, as it published it last."""
    return engine.snapshot().stages["loader"].counters.get(name, 0)


@pytest.mark.slow
def test_a_disk_that_fails_once_costs_a_read_and_one_that_fails_always_the_engine(
    model: Path, right: list[list[int]], faults: Faults
) -> None:
    """First EIO, short reads and slow ones: the same tokens, and no process dies. Then an error that names the file."""
    with Supervisor(Config.load(model=model, expert_memory="25%", restart_limit=1)) as engine:
        faults.add("read", EIO, WEIGHTS, first=5, count=1)
        faults.add("read", SHORT, WEIGHTS, first=10, count=200)
        faults.add("read", DELAY, WEIGHTS, first=20, count=20)
        assert generate(engine.address) == right
        wait_until(lambda: counter(engine, "read_retries") == 1)
        assert set(engine.snapshot().restarts.values()) == {0}
        faults.clear()
        with Client(engine.address) as client:
            batch = client.submit(random_prompts(3, VOCABULARY, seed=3), max_new_tokens=200, eos_ids=[])
            await_tokens(batch, 5)
            faults.add("read", EIO, WEIGHTS)
            with pytest.raises(EngineError):
                batch.results(timeout_s=200)
        with pytest.raises(EngineError, match=r"died 2 times.*model.safetensors: cannot read expert.*Errno 5"):
            engine.wait(100)


def test_a_checkpoint_that_cannot_be_read_at_the_start_is_named(model: Path, faults: Faults) -> None:
    faults.add("read", EIO, WEIGHTS)
    with pytest.raises((CheckpointError, EngineError), match="model.safetensors.*Input/output error"):
        Supervisor(Config.load(model=model, expert_memory="25%")).start()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["trace", "record", "timeline"])
def test_a_full_disk_ends_what_is_recorded_and_not_the_engine(
    how: str, model: Path, right: list[list[int]], faults: Faults, tmp_path: Path
) -> None:
    place = tmp_path / "outputs"
    faults.add("write", ENOSPC, str(place), first=2)
    with Supervisor(Config.load(model=model, expert_memory="25%", **{how: str(place)}), verbose=True) as engine:
        assert generate(engine.address) == right
    assert set(engine.snapshot().restarts.values()) == {0}


def test_a_flipped_bit_ends_the_engine_with_file_and_expert(
    model: Path, right: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and time of the file stay as they are: nothing but the checksum tells."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = Config.load(model=model, expert_memory="25%", verify_reads=True)
    with Supervisor(config) as engine:
        assert generate(engine.address) == right
        assert counter(engine, "checksum_mismatches") == 0
    file = model / WEIGHTS
    offset = int(survey_checkpoint(str(model)).place_table()[1, 2, 0, 1])
    flip(file, offset)
    try:
        with Supervisor(config) as engine:
            with pytest.raises(EngineError):
                generate(engine.address, tokens=200)
            with pytest.raises(CheckpointError, match="expert 2 of MoE layer 1") as caught:
                engine.wait(100)
            assert caught.value.where == str(file)
            assert set(engine.snapshot().restarts.values()) == {0}
    finally:
        flip(file, offset)


def flip(file: Path, offset: int) -> None:
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[offset] ^= 16
    with file.open("r+b") as stream:
        stream.write(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
