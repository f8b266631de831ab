"""Penalties, logprobs, scoring and routed experts through all processes, killed ones too; and whose turn it is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from expertflow import AsyncClient, Client, Completion, Config, Request, Supervisor
from expertflow.errors import RequestError
from expertflow.ipc.messages import TokenLogprob
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.system.awaiting import await_tokens
from expertflow.tests.system.references import random_prompts
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4
TOKENS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3_moe")
    save_tiny("qwen3_moe", folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Supervisor]:
    config = Config.load(model=folder, expert_memory="25%", restart_limit=20, batch_size=8, prefill_chunk=32)
    with Supervisor(config) as engine:  # what is scored, or computed again, is longer than a chunk
        yield engine


@pytest.fixture(scope="module")
def client(engine: Supervisor) -> Iterator[Client]:
    with Client(engine.address) as client:
        yield client


class Reference:
    """What transformers says of whole sequences, one forward each."""

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def check(self, done: Completion) -> None:
        """Logprobs of prompt and output, and the experts of every position but the last."""
        ids = [*done.prompt_ids, *done.token_ids]
        out = self._model(torch.tensor([ids]), output_router_logits=True)
        expected = out.logits[0].double().log_softmax(-1)
        told = [*(done.prompt_logprobs or []), *(done.logprobs or [])]
        assert len(told) == len(ids) and told[0] is None
        for position, entry in enumerate(told[1:]):
            assert entry is not None and entry.token_id == ids[position + 1]
            assert entry.logprob == pytest.approx(float(expected[position, entry.token_id]), abs=TOLERANCE)
            best = expected[position].sort(descending=True).values[:3].tolist()
            assert [value for _, value in entry.top] == pytest.approx(best, abs=TOLERANCE)
            assert entry.rank == 1 + int((expected[position] > entry.logprob + TOLERANCE).sum())
        self._check_routes(done, out.router_logits)

    def _check_routes(self, done: Completion, router_logits: tuple[torch.Tensor, ...]) -> None:
        assert done.routed_experts is not None and done.routed_experts.dtype == np.uint8
        positions = len(done.prompt_ids) + max(len(done.token_ids) - 1, 0)
        top_k = done.routed_experts.shape[2]
        assert done.routed_experts.shape == (positions, len(router_logits), top_k)
        for layer, scores in enumerate(router_logits):
            expected = scores.topk(top_k).indices[:positions].sort().values.numpy()
            assert (np.sort(done.routed_experts[:, layer]) == expected).all()


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


def requests() -> list[Request]:
    """Greedy and drawn, penalised and biased, in padded units and batch-invariant ones."""
    plain = Request([0], max_new_tokens=TOKENS, eos_ids=[], logprobs=3, prompt_logprobs=3, routed_experts=True)
    kinds = [
        plain,
        replace(plain, repetition_penalty=1.3, presence_penalty=0.5),
        replace(plain, temperature=0.9, min_p=0.02, frequency_penalty=0.4, seed=5),
        replace(plain, temperature=1.1, top_k=30, logit_bias={7: 2.0, 9: -100.0}, seed=6),
        replace(plain, batch_invariant=True, temperature=0.8, presence_penalty=-0.3, seed=7),
        replace(plain, batch_invariant=True, eos_ids=None, stop_ids=[3, 4, 5], min_new_tokens=TOKENS - 5),
    ]
    prompts = random_prompts(len(kinds), VOCABULARY, seed=4)
    return [replace(kind, prompt=prompt) for kind, prompt in zip(kinds, prompts, strict=True)]


@pytest.fixture(scope="module")
def undisturbed(client: Client) -> list[Completion]:
    return client.generate(requests())


def test_logprobs_and_experts_are_those_of_transformers(undisturbed: list[Completion], reference: Reference) -> None:
    """Raw ones: no penalty, bias or temperature of the request is in them."""
    for done in undisturbed:
        reference.check(done)
    assert len({tuple(done.token_ids) for done in undisturbed}) == len(undisturbed)
    assert all(9 not in done.token_ids for done in undisturbed[3:4])
    assert len(undisturbed[5].token_ids) >= TOKENS - 5


@pytest.mark.timeout(240)
def test_deaths_cost_neither_a_token_nor_its_logprob(
    engine: Supervisor, client: Client, undisturbed: list[Completion], reference: Reference
) -> None:
    """I4: compute is killed, then the scheduler, which takes all that it had recorded with it."""
    batch = client.submit(requests())
    for stage in ("compute", "scheduler"):
        await_tokens(batch, 60)
        engine.kill(stage)
    done = batch.results(timeout_s=120)
    assert [each.token_ids for each in done] == [each.token_ids for each in undisturbed]
    assert max(each.timings.recomputed for each in done) <= 1
    for each in done:
        reference.check(each)
    for each, before in zip(done[4:], undisturbed[4:], strict=True):
        assert each.logprobs == before.logprobs, "batch-invariant rows have the same bits"


def test_a_prompt_is_scored_without_output(client: Client, undisturbed: list[Completion], reference: Reference) -> None:
    """It fills the context or not; beside requests that generate."""
    texts = [[*each.prompt_ids, *each.token_ids] for each in undisturbed[:3]] + [[5], [7] * 256]
    asking = [Request(text, max_new_tokens=0, prompt_logprobs=3, logprobs=3, routed_experts=True) for text in texts]
    *scored, output = client.generate([*asking, Request([5, 6], max_new_tokens=4, eos_ids=[])])
    for text, done in zip(texts, scored, strict=True):
        assert (done.prompt_ids, done.token_ids, done.finish_reason) == (text, [], "length")
        reference.check(done)
    assert len(output.token_ids) == 4 and output.logprobs is output.prompt_logprobs is output.routed_experts is None


def test_events_carry_the_logprobs_of_their_tokens(engine: Supervisor, client: Client) -> None:
    """Of both clients."""
    request = Request([5, 6, 7], max_new_tokens=12, eos_ids=[], logprobs=0)
    batch = client.submit([request, replace(request, logprobs=None)])
    seen: list[list[TokenLogprob]] = [[], []]
    for event in batch:
        assert len(event.logprobs) == (len(event.token_ids) if event.index == 0 else 0)
        seen[event.index] += event.logprobs
    assert seen[0] == batch.results()[0].logprobs

    async def stream() -> list[TokenLogprob]:
        async with AsyncClient(engine.address) as other:
            return [entry async for event in await other.submit([request]) for entry in event.logprobs]

    assert [entry.token_id for entry in asyncio.run(stream())] == batch.results()[0].token_ids


def test_two_tokens_do_not_wait_behind_four_hundred_requests_of_another(engine: Supervisor, client: Client) -> None:
    """And one of a lower priority number starts before all that wait, its own client's too."""
    many = client.submit([[3 + i % 100, 7] for i in range(400)], max_new_tokens=10, eos_ids=[])
    many.wait_until_started()
    with Client(engine.address) as other:
        assert len(other.generate([[5, 6]], max_new_tokens=2, eos_ids=[])[0].token_ids) == 2
    urgent = client.submit([Request([5, 6], priority=-1)], max_new_tokens=2, eos_ids=[])
    ended = 0
    for batch, event in client.events(many, urgent):
        ended += batch is many and event.finish_reason is not None
        if batch is urgent and event.finish_reason is not None:
            break
    assert ended < 60, "a client sends what is urgent first"
    many.cancel()
    assert len(many.results(60)) == 400


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"logit_bias": {VOCABULARY: 1.0}}, "logit_bias"),
        ({"stop_ids": [VOCABULARY]}, "stop_ids"),
    ],
)
def test_what_only_the_engine_can_know_is_wrong_fails_alone(
    client: Client, wrong: dict[str, object], where: str
) -> None:
    bad, good = client.submit([Request([5], **wrong), [5]], 3).results(30, return_errors=True)  # pyright: ignore[reportArgumentType]
    assert isinstance(bad, RequestError) and bad.where == where and bad.remedy
    assert isinstance(good, Completion)
