"""What HTTP adds: to a batch, as one body and as concurrent bodies and streams, and to the first token.

python -m expertflow.benchmarks.serving http --model r --batch 64 --tokens 24

Client and HTTP take turns on one engine, in pairs of which either is first in every other round; the client is the
asyncio client in this process. The built-in model's step is so short that chance decides: model R is measured.
`server_ms` is the processor time of the server's process a request, which does not depend on what else runs.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
from expertflow import AsyncClient

from ..models import held_out_prompts
from ..report import show_table
from .budget import Budget
from .common import add_model_options, config_of
from .quartiles import quartiles
from .raw_client import post, read_stream
from .served import Served, served

MINUTES = 12.0
PATH = "/v1/completions"
CLIENT = "client"
PROMPT_TOKENS = 24
SINGLES_SHARE = 0.2
"""Share of the time for first tokens."""
Way = Callable[[], Awaitable[int]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measurement."""
    add_model_options(parser)
    parser.add_argument("--batch", type=int, default=64, help="requests")
    parser.add_argument("--tokens", type=int, default=24, help="new tokens of each")
    parser.add_argument("--rounds", type=int, default=8, help="pairs of each way with the client")
    parser.add_argument("--singles", type=int, default=60, help="pairs of requests for the time to the first token")


def run(arguments: argparse.Namespace, budget: Budget) -> dict[str, Any]:
    """Measure, show and return the seconds of each pair and their ratios."""
    config = config_of(arguments, batch_size=arguments.batch)
    prompts = [[1 + ord(letter) % 100 for letter in text[:PROMPT_TOKENS]] for text in held_out_prompts(arguments.batch)]
    with served(config) as engine:
        measured = asyncio.run(_measure(engine, prompts, arguments, budget))
    rows = [_row(name, pairs, arguments.batch) for name, pairs in measured["pairs"].items()]
    show_table(f"{arguments.batch} requests of {arguments.tokens} tokens, model {arguments.model}", rows)
    first = _first_token_row(measured["first_token_s"])
    show_table("first token, ms: median (quartiles)", [first])
    return {"model": arguments.model, "rows": rows, "first_token_ms": first, **measured}


class Batches:
    """The same batch of requests in several ways. Each returns the number of tokens."""

    def __init__(self, client: AsyncClient, port: int, prompts: list[list[int]], tokens: int) -> None:
        self._client, self._port, self._prompts, self._tokens = client, port, prompts, tokens
        self._body: dict[str, Any] = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        self.ways: dict[str, Way] = {
            CLIENT: self.by_client,
            "one body": self.as_one_body,
            "concurrent bodies": self.as_bodies,
            "concurrent streams": self.as_streams,
        }

    async def by_client(self) -> int:
        done = await self._client.generate(self._prompts, self._tokens, eos_ids=[])
        return sum(len(completion.token_ids) for completion in done)

    async def as_one_body(self) -> int:
        answer = await post(self._port, PATH, self._body | {"prompt": self._prompts})
        return int(answer["usage"]["completion_tokens"])

    async def as_bodies(self) -> int:
        bodies = [self._body | {"prompt": prompt} for prompt in self._prompts]
        answers = await asyncio.gather(*(post(self._port, PATH, body) for body in bodies))
        return sum(int(answer["usage"]["completion_tokens"]) for answer in answers)

    async def as_streams(self) -> int:
        bodies = [self._body | {"prompt": prompt} for prompt in self._prompts]
        streams = await asyncio.gather(*(read_stream(self._port, PATH, body) for body in bodies))
        return sum(self._tokens for stream in streams if stream.done)


async def _measure(
    engine: Served, prompts: list[list[int]], arguments: argparse.Namespace, budget: Budget
) -> dict[str, Any]:
    """Return for each way its pairs, and the pairs of times to the first token, in seconds."""
    async with AsyncClient(engine.address) as client:
        batches = Batches(client, engine.port, prompts, arguments.tokens)
        timer = _Timer(batches, psutil.Process(engine.front.pid), arguments.tokens * len(prompts))
        singles_s = SINGLES_SHARE * budget.left_s
        for name in batches.ways:  # warms up
            await timer.run(name)
        firsts = await _first_tokens(engine, client, prompts, arguments.singles, Budget(singles_s / 60))
        pairs: dict[str, list[dict[str, float]]] = {name: [] for name in batches.ways if name != CLIENT}
        for number in budget.rounds(arguments.rounds):
            for name in pairs:
                pairs[name].append(await timer.run_pair(name, first=number % 2 == 0))
    return {"pairs": pairs, "first_token_s": firsts}


class _Timer:
    """Times ways, and the server's processor time meanwhile."""

    def __init__(self, batches: Batches, server: psutil.Process, tokens: int) -> None:
        self._batches, self._server, self._tokens = batches, server, tokens

    async def run(self, name: str) -> tuple[float, float]:
        """Return the seconds of a way, and those of the server's processor time. Raises RuntimeError for lost ones."""
        begun_s, before = time.perf_counter(), self._server.cpu_times()
        count = await self._batches.ways[name]()
        taken_s, after = time.perf_counter() - begun_s, self._server.cpu_times()
        if count != self._tokens:
            raise RuntimeError(f"{name}: {count} tokens instead of {self._tokens}")
        return taken_s, after.user + after.system - before.user - before.system

    async def run_pair(self, name: str, first: bool) -> dict[str, float]:
        """Run a way and the client, the way first or second."""
        runs = {each: await self.run(each) for each in ((name, CLIENT) if first else (CLIENT, name))}
        return {"http_s": runs[name][0], "client_s": runs[CLIENT][0], "server_cpu_s": runs[name][1]}


async def _first_tokens(
    engine: Served, client: AsyncClient, prompts: list[list[int]], singles: int, budget: Budget
) -> list[dict[str, float]]:
    """Return pairs of seconds to the first token of a request that is alone."""
    pairs: list[dict[str, float]] = []
    for number in budget.rounds(singles):
        prompt, pair = prompts[number % len(prompts)], {}
        for way in ("http", CLIENT) if number % 2 else (CLIENT, "http"):
            pair[way] = await (_first_by_client(client, prompt) if way == CLIENT else _first_by_http(engine, prompt))
        pairs.append(pair)
    return pairs


async def _first_by_http(engine: Served, prompt: list[int]) -> float:
    body = {"prompt": prompt, "max_tokens": 2, "temperature": 0, "ignore_eos": True}
    return (await read_stream(engine.port, PATH, body)).first_s


async def _first_by_client(client: AsyncClient, prompt: list[int]) -> float:
    begun = time.perf_counter()
    batch = await client.submit([prompt], 2, eos_ids=[])
    await batch.wait_until_started()
    taken = time.perf_counter() - begun
    await batch.results()
    return taken


def _row(name: str, pairs: list[dict[str, float]], batch: int) -> dict[str, Any]:
    """Return a row of medians and quartiles; ratios are those of the pairs."""
    return {
        "way": name,
        "pairs": len(pairs),
        "seconds": str(quartiles([pair["http_s"] for pair in pairs])),
        "client, s": str(quartiles([pair["client_s"] for pair in pairs])),
        "to client": str(quartiles([pair["http_s"] / pair["client_s"] for pair in pairs])),
        "server_ms": f"{1000 * quartiles([pair['server_cpu_s'] for pair in pairs]).median / batch:.2f}",
    }


def _first_token_row(pairs: list[dict[str, float]]) -> dict[str, Any]:
    ms = {way: [1000 * pair[way] for pair in pairs] for way in (CLIENT, "http")}
    added = [1000 * (pair["http"] - pair[CLIENT]) for pair in pairs]
    return {"pairs": len(pairs), **{way: str(quartiles(ms[way])) for way in ms}, "added": str(quartiles(added))}
