"""The whole pipeline in real processes: exactness for each family, death of each stage, bad input beside good."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from expertflow import AsyncClient, Client, Completion, Config, Supervisor
from expertflow.errors import ExpertFlowError, RequestError
from expertflow.ipc.transport.addresses import CLIENTS, socket_address
from expertflow.tests.models.families import FAMILIES, VOCABULARY, save_tiny
from expertflow.tests.system.awaiting import await_tokens
from expertflow.tests.system.references import Reference, random_prompts

STAGES = ("scheduler", "predictor", "loader", "compute")
QUICK = ("qwen3_next", "gpt_oss", "deepseek_v2")
"""Linear attention, biases and transposed weights, latent attention; olmoe and qwen3_moe run in many other tests."""


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "family", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in FAMILIES]
)
def test_each_family_gives_the_tokens_of_transformers(family: str, tmp_path: Path) -> None:
    """I1b through all processes, at a quarter of the experts from disk, more prompts than rows."""
    save_tiny(family, tmp_path, max_shard_size="60KB")
    prompts = random_prompts(6, VOCABULARY)
    config = Config.load(model=tmp_path, expert_memory="25%", batch_size=4)
    with Supervisor(config) as engine, Client(engine.address) as client:
        done = client.generate(prompts, max_new_tokens=12, eos_ids=[])
    reference = Reference(tmp_path)
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, 12) for prompt in prompts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3_moe")
    save_tiny("qwen3_moe", folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Supervisor]:
    with Supervisor(Config.load(model=folder, expert_memory="25%", restart_limit=50)) as engine:
        yield engine


@pytest.fixture
def client(engine: Supervisor) -> Iterator[Client]:
    with Client(engine.address) as client:
        yield client


@pytest.mark.timeout(240)
@pytest.mark.parametrize("stage", STAGES)
def test_death_of_a_stage_costs_a_pause_not_a_token(
    engine: Supervisor, client: Client, reference: Reference, stage: str
) -> None:
    """I4: the stage is killed mid-stream; every request ends once, with the tokens it would have had."""
    prompts = random_prompts(8, VOCABULARY, seed=STAGES.index(stage))
    restarts = client.stats().restarts.get(stage, 0)
    batch = client.submit(prompts, max_new_tokens=120, eos_ids=[])
    await_tokens(batch, 40)
    engine.kill(stage)
    done = batch.results(timeout_s=120)
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, 120) for prompt in prompts]
    assert _restarts(client, stage) == restarts + 1


def test_when_compute_dies_its_rows_wait_again_before_the_next_one_is_ready(
    engine: Supervisor, client: Client, reference: Reference
) -> None:
    """The scheduler hears of the death itself: a snapshot shows the rows in the queue while compute is down."""
    prompts = random_prompts(4, VOCABULARY, seed=77)
    batch = client.submit(prompts, max_new_tokens=100, eos_ids=[])
    await_tokens(batch, 8)
    engine.kill("compute")
    deadline = time.monotonic() + 30
    seen: set[tuple[int, float, float]] = set()
    while (len(prompts), 0, 0) not in seen and time.monotonic() < deadline:
        snapshot = engine.snapshot()
        stats = snapshot.stages["scheduler"]
        if "compute" in snapshot.down:
            seen.add((stats.queue, stats.counters["running"], stats.counters["steps_in_flight"]))
        time.sleep(0.005)
    assert (len(prompts), 0, 0) in seen
    done = batch.results(timeout_s=120)
    assert [list(each.token_ids) for each in done] == [reference.greedy(prompt, 100) for prompt in prompts]
    assert not engine.snapshot().down


def _restarts(client: Client, stage: str) -> int:
    """The snapshot counts a restart once the successor was started, which may be after the last token."""
    deadline = time.monotonic() + 30
    while not (count := client.stats().restarts.get(stage, 0)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return count


BAD = {
    "empty prompt": ([], {}),
    "id outside the vocabulary": ([5, VOCABULARY], {}),
    "negative id": ([5, -1], {}),
    "prompt longer than the context": ([5] * 300, {}),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_prompt_fails_alone(client: Client, reference: Reference, case: str) -> None:
    """Its neighbours in the batch are not disturbed, and the error says what was wrong."""
    good = [7, 8, 9]
    results = client.submit([good, BAD[case][0], good], max_new_tokens=4, eos_ids=[]).results(30, return_errors=True)
    assert isinstance(results[1], ExpertFlowError) and results[1].remedy
    for place in (0, 2):
        neighbour = results[place]
        assert isinstance(neighbour, Completion) and list(neighbour.token_ids) == reference.greedy(good, 4)


@pytest.mark.parametrize(
    "wish", [{"max_new_tokens": 0}, {"temperature": math.nan}, {"temperature": -1.0}, {"top_p": 0.0}]
)
def test_a_bad_wish_is_refused_at_once(client: Client, wish: dict[str, float]) -> None:
    with pytest.raises(RequestError):
        client.submit([[5]], **wish)  # pyright: ignore[reportArgumentType]


def test_a_foreign_message_disturbs_nobody(engine: Supervisor, client: Client, reference: Reference) -> None:
    """Garbage, a valid message of another type and many frames on the client socket, beside a running request."""
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.connect(socket_address(str(engine.address), CLIENTS))
    for frames in ([b"\xc1garbage"], [b""], [b"\x81\xa4type\xa4Used"], [b"a", b"b", b"c"]):
        stranger.send_multipart(frames)
    done = client.generate([[3, 4, 5]], max_new_tokens=8, eos_ids=[])
    context.destroy(linger=0)
    assert list(done[0].token_ids) == reference.greedy([3, 4, 5], 8)


def test_sampling_depends_on_the_seed_alone(client: Client) -> None:
    """The same request with the same seed gives the same tokens, alone or among others."""
    alone = client.generate([[9, 8, 7]], max_new_tokens=12, temperature=0.8, top_k=20, top_p=0.9, seed=3, eos_ids=[])
    others = random_prompts(5, VOCABULARY)
    among = client.generate(
        [[9, 8, 7], *others], max_new_tokens=12, temperature=0.8, top_k=20, top_p=0.9, seed=3, eos_ids=[]
    )
    assert list(alone[0].token_ids) == list(among[0].token_ids)
    other = client.generate([[9, 8, 7]], max_new_tokens=12, temperature=0.8, top_k=20, top_p=0.9, seed=4, eos_ids=[])
    assert list(other[0].token_ids) != list(alone[0].token_ids)


def test_cancel_keeps_what_was_generated(client: Client, reference: Reference) -> None:
    batch = client.submit([[5, 6, 7]], max_new_tokens=240, eos_ids=[])
    for event in batch:
        if event.token_ids:
            batch.cancel()
            break
    done = batch.results(timeout_s=30)[0]
    assert done.finish_reason == "cancelled" and 0 < len(done.token_ids) < 240
    assert list(done.token_ids) == reference.greedy([5, 6, 7], len(done.token_ids))


def test_a_deadline_ends_a_request_with_what_it_has(client: Client) -> None:
    done = client.generate([[5, 6, 7]], max_new_tokens=250, deadline_s=0.05, eos_ids=[])[0]
    assert done.finish_reason == "deadline" and len(done.token_ids) < 250


def test_thousands_of_requests_queue_up(client: Client, reference: Reference) -> None:
    """Back-pressure: far more requests than rows; order kept, none lost."""
    prompts = [[3 + number % 100, 3 + number // 100] for number in range(2000)]
    done = client.generate(prompts, max_new_tokens=1, eos_ids=[])
    assert len(done) == 2000
    for number in range(0, 2000, 97):
        assert list(done[number].token_ids) == reference.greedy(prompts[number], 1)


def test_an_asyncio_client_streams_cancels_and_outlives_the_scheduler(engine: Supervisor, reference: Reference) -> None:
    """Many tasks on one client: one is cancelled, the scheduler is killed, the others get their tokens."""
    prompts = random_prompts(6, VOCABULARY, seed=77)

    async def stream(client: AsyncClient, prompt: list[int], started: asyncio.Event) -> list[int]:
        tokens: list[int] = []
        async for event in await client.submit([prompt], max_new_tokens=60, eos_ids=[]):
            tokens += event.token_ids
            if len(tokens) > 5:
                started.set()
        return tokens

    async def main() -> None:
        async with AsyncClient(engine.address) as client:
            started = asyncio.Event()
            tasks = [asyncio.create_task(stream(client, prompt, started)) for prompt in prompts]
            doomed = asyncio.create_task(client.generate([[5, 6, 7]] * 4, max_new_tokens=250, eos_ids=[]))
            await started.wait()
            doomed.cancel()
            engine.kill("scheduler")
            assert await asyncio.gather(*tasks) == [reference.greedy(prompt, 60) for prompt in prompts]
            with pytest.raises(asyncio.CancelledError):
                await doomed
            assert (await client.stats()).stages["scheduler"].queue == 0

    asyncio.run(asyncio.wait_for(main(), 100))
