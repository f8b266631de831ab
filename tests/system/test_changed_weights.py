"""Weights that are overwritten or cut off under a running engine end it with their name, before another text comes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from expertflow import Client, Config, Supervisor
from expertflow.errors import CheckpointError
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.system.references import Reference, random_prompts


def overwrite(file: Path) -> None:
    """All weights, in place; the header stays."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    with file.open("r+b") as stream:
        stream.seek(start)
        stream.write(bytes(len(data) - start))


def cut_off(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("change", "what"), [(overwrite, "was overwritten"), pytest.param(cut_off, "was cut off", marks=pytest.mark.slow)]
)
def test_a_running_engine_ends_with_the_file_and_without_other_text(
    change: Callable[[Path], None], what: str, tmp_path: Path
) -> None:
    save_tiny("olmoe", tmp_path)
    prompts = random_prompts(4, VOCABULARY)
    right = [Reference(tmp_path).greedy(prompt, 120) for prompt in prompts]
    seen: list[list[int]] = [[] for _ in prompts]
    errors: set[int] = set()
    with Supervisor(Config.load(model=tmp_path, expert_memory="25%")) as engine, Client(engine.address) as client:
        done = False
        for event in client.submit(prompts, max_new_tokens=120, eos_ids=[]):
            seen[event.index] += event.token_ids
            errors |= {event.index} if event.error else set()
            if not done and sum(map(len, seen)) > 40:
                change(tmp_path / "model.safetensors")
                done = True
        with pytest.raises(CheckpointError) as caught:
            engine.wait(60)
        restarts = engine.snapshot().restarts
    assert errors == set(range(len(prompts)))
    assert caught.value.where == str(tmp_path / "model.safetensors")
    assert what in caught.value.what
    assert sum(restarts.values()) <= 1, "compute may find a page gone; everything else ends at once"
    assert seen == [whole[: len(tokens)] for tokens, whole in zip(seen, right, strict=True)]
