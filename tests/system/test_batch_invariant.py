"""The option batch_invariant through all processes: a text alone is the text in a batch (I1d)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from expertflow import Client, Completion, Config, Request, Supervisor
from expertflow.errors import UsageError
from expertflow.runtime.client.options import OptionNames
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.system.awaiting import await_tokens
from expertflow.tests.system.references import random_prompts

TOKENS = 24
SEED = 11
SEEDED: OptionNames = {"temperature": 1.2, "seed": SEED, "eos_ids": []}
INVARIANT: OptionNames = {**SEEDED, "batch_invariant": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("olmoe")
    save_tiny("olmoe", folder, dtype=torch.bfloat16)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Supervisor]:
    with Supervisor(Config.load(model=folder, expert_memory="25%", batch_size=8)) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine: Supervisor) -> Iterator[Client]:
    with Client(engine.address) as client:
        yield client


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return random_prompts(8, VOCABULARY)


def outputs(done: Sequence[Completion]) -> list[list[int]]:
    return [list(each.token_ids) for each in done]


def alone(client: Client, prompts: list[list[int]], batch_invariant: bool) -> list[list[int]]:
    """Each prompt by itself, with the seed that it has in the batch."""
    requests = [Request(prompt, seed=SEED + number) for number, prompt in enumerate(prompts)]
    options = INVARIANT if batch_invariant else SEEDED
    return [outputs(client.generate([request], TOKENS, **options))[0] for request in requests]


@pytest.fixture(scope="module")
def texts(client: Client, prompts: list[list[int]]) -> list[list[int]]:
    return alone(client, prompts, batch_invariant=True)


def test_a_seeded_text_alone_is_the_text_in_a_batch(
    client: Client, prompts: list[list[int]], texts: list[list[int]]
) -> None:
    """In bfloat16, at a quarter of the slots."""
    assert outputs(client.generate(prompts, TOKENS, **INVARIANT)) == texts


@pytest.mark.slow
def test_without_the_option_some_text_differs(client: Client, prompts: list[list[int]]) -> None:
    """Else the test above would prove nothing."""
    assert outputs(client.generate(prompts, TOKENS, **SEEDED)) != alone(client, prompts, batch_invariant=False)


def test_other_requests_beside_it_change_nothing(
    client: Client, prompts: list[list[int]], texts: list[list[int]]
) -> None:
    others = client.submit(prompts[:4], 2 * TOKENS, eos_ids=[])
    assert outputs(client.generate(prompts, TOKENS, **INVARIANT)) == texts
    assert len(others.results(60)) == 4


def test_a_death_of_compute_changes_no_token(
    engine: Supervisor, client: Client, prompts: list[list[int]], texts: list[list[int]]
) -> None:
    """In bfloat16: what is computed again has the same bits, since it is computed in the same way."""
    batch = client.submit(prompts, TOKENS, **INVARIANT)
    await_tokens(batch, 40)
    engine.kill("compute")
    done = batch.results(60)
    assert outputs(done) == texts and max(each.timings.recomputed for each in done) == 1


def test_a_device_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UsageError, match="batch_invariant.*CPU alone"):
        Config.load("cuda", model="/no/such/model", batch_invariant=True)
