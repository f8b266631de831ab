"""Measure what HTTP adds: to a batch, as one body and as concurrent bodies and streams, and to the first token.

python -m expertflow.benchmarks.serving.http --out docs/results/http.json

Client and HTTP take turns in one run on one engine; the client is the asyncio client in this process. Each round runs
every way once, another one first, so that a slow moment of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from expertflow import AsyncClient, Config

from ..models import EXAMPLES, folder_of, held_out_prompts
from ..report import show_table, write_json
from .raw_client import post, read_stream
from .served import Served, served

PATH = "/v1/completions"
Way = Callable[[], Awaitable[int]]


class Batches:
    """The same batch of requests in several ways. Each returns the number of tokens."""

    def __init__(self, client: AsyncClient, port: int, prompts: list[list[int]], tokens: int) -> None:
        self._client, self._port, self._prompts, self._tokens = client, port, prompts, tokens
        self._body: dict[str, Any] = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        self.ways: dict[str, Way] = {
            "client": self.by_client,
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


async def measure(engine: Served, prompts: list[list[int]], tokens: int, rounds: int, singles: int) -> dict[str, Any]:
    """Return the seconds of each way and the times to the first token."""
    async with AsyncClient(engine.address) as client:
        batches = Batches(client, engine.port, prompts, tokens)
        seconds: dict[str, list[float]] = {name: [] for name in batches.ways}
        for number in range(rounds + 1):
            for name, way in _rotated(list(batches.ways.items()), number):
                begun = time.perf_counter()
                count = await way()
                taken = time.perf_counter() - begun
                if count != tokens * len(prompts):
                    raise RuntimeError(f"{name}: {count} tokens instead of {tokens * len(prompts)}")
                if number:  # the first round warms up
                    seconds[name].append(taken)
        firsts = {"client": [], "http": []}
        for place in range(singles):
            prompt = prompts[place % len(prompts)]
            firsts["client"].append(await first_by_client(client, prompt))
            firsts["http"].append((await read_stream(engine.port, PATH, first_body(prompt))).first_s)
    return {"seconds": seconds, "first_token_s": firsts}


def _rotated(ways: list[tuple[str, Way]], by: int) -> list[tuple[str, Way]]:
    """Return the ways in another order each round, so that none is always first."""
    return ways[by % len(ways) :] + ways[: by % len(ways)]


def first_body(prompt: list[int]) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 2, "temperature": 0, "ignore_eos": True}


async def first_by_client(client: AsyncClient, prompt: list[int]) -> float:
    begun = time.perf_counter()
    batch = await client.submit([prompt], 2, eos_ids=[])
    await batch.wait_until_started()
    taken = time.perf_counter() - begun
    await batch.results()
    return taken


def rows_of(measured: dict[str, Any], tokens: int) -> Iterable[dict[str, Any]]:
    """Yield a row a way: median seconds, tokens a second, and the median of the ratios to the client of its round."""
    base = measured["seconds"]["client"]
    for name, seconds in measured["seconds"].items():
        ratio = median(taken / of_client for taken, of_client in zip(seconds, base, strict=True))
        yield {
            "way": name,
            "seconds": round(median(seconds), 3),
            "tokens_a_s": round(tokens / median(seconds), 1),
            "to_client": round(ratio, 3),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="example", help="example, r, widened, …")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--singles", type=int, default=60, help="requests for the time to the first token")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    folder = EXAMPLES / "model" if arguments.model == "example" else folder_of(arguments.model)
    config = Config.load("cpu-host", model=str(folder), batch_size=arguments.batch, kv_memory="512MiB")
    prompts = [[1 + ord(letter) % 100 for letter in text[:24]] for text in held_out_prompts(arguments.batch)]
    with served(config) as engine:
        measured = asyncio.run(
            measure(engine, prompts, arguments.tokens, arguments.rounds, arguments.singles)
        )
    rows = list(rows_of(measured, arguments.batch * arguments.tokens))
    show_table(f"{arguments.batch} requests of {arguments.tokens} tokens", rows)
    firsts = {name: round(1000 * median(times), 2) for name, times in measured["first_token_s"].items()}
    added = round(1000 * median(
        http - client for http, client in zip(*map(measured["first_token_s"].get, ("http", "client")), strict=True)
    ), 2)
    show_table("First token, ms", [firsts | {"added": added}], left=0)
    write_json(arguments.out, {"rows": rows, "first_token_ms": firsts | {"added": added}, **measured})


if __name__ == "__main__":
    main()
