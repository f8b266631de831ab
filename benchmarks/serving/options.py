"""What options of a request cost: a step with penalties, biases, log probabilities or a JSON schema beside a plain one.

python -m expertflow.benchmarks.serving options --model r --batches 8 32

Each option takes turns with plain sampling on one engine, in pairs of which either is first in every other round. A
step is the time from the first token of the last row to the end, divided by the tokens in between.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from expertflow import Client, Supervisor
from expertflow.runtime.text.structured import Structured

from ..models import EXAMPLES
from ..report import show_table
from .budget import Budget
from .common import add_model_options, config_of, random_ids
from .quartiles import quartiles

MINUTES = 8.0
PLAIN = "plain"
SHARED: dict[str, Any] = {"temperature": 1.0, "seed": 1, "eos_ids": []}
ENDLESS = {"type": "array", "items": {"type": "integer"}, "minItems": 10_000}
"""Schema that no output of these lengths completes, so that all have as many tokens."""
OPTIONS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    "logit_bias": {"logit_bias": {token: 1.0 for token in range(3, 103)}},
    "logprobs": {"logprobs": 5},
    "json_schema": {"structured": Structured(json_schema=ENDLESS), "eos_ids": [0]},
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measurement."""
    add_model_options(parser)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32], help="rows that run together")
    parser.add_argument("--prompt", type=int, default=24, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=24, help="new tokens of each")
    parser.add_argument("--rounds", type=int, default=6, help="pairs of each option with plain sampling")


def run(arguments: argparse.Namespace, budget: Budget) -> dict[str, Any]:
    """Measure, show and return the milliseconds of a step of each pair."""
    config = config_of(arguments, batch_size=max(arguments.batches), units="one")
    with with_tokenizer(Path(config.model)) as folder:
        config = msgspec.structs.replace(config, model=str(folder))
        with Supervisor(config) as engine, Client(engine.address) as client:
            pairs = _measure(client, arguments, budget)
    rows = [_row(batch, name, each) for (batch, name), each in pairs.items()]
    show_table(f"a step, model {arguments.model}, {arguments.expert_memory} of experts", rows, left=2)
    listed = [{"batch": batch, "option": name, "pairs": each} for (batch, name), each in pairs.items()]
    return {"model": arguments.model, "tokens": arguments.tokens, "rows": rows, "pairs": listed}


@contextmanager
def with_tokenizer(folder: Path) -> Iterator[Path]:
    """Yield a folder with the model's files, and with the built-in model's tokenizer if it has none.

    A schema is about texts, and a random model has no texts of its own.
    """
    if (folder / "tokenizer.json").exists():
        yield folder
        return
    with tempfile.TemporaryDirectory() as made:
        for file in [*folder.iterdir(), *(EXAMPLES / "model").glob("tokenizer*.json")]:
            Path(made, file.name).symlink_to(file)
        yield Path(made)


Pairs = dict[tuple[int, str], list[dict[str, float]]]


def _measure(client: Client, arguments: argparse.Namespace, budget: Budget) -> Pairs:
    """Return for each batch size and option its pairs of milliseconds a step."""
    vocabulary = client.model.vocabulary
    names = [name for name in OPTIONS if name != PLAIN]
    prompts = [random_ids(vocabulary, arguments.prompt, str(row)) for row in range(max(arguments.batches))]
    for name in OPTIONS:  # warms up
        step_ms(client, prompts, name, 4)
    pairs: Pairs = {(batch, name): [] for batch in arguments.batches for name in names}
    for number in budget.rounds(arguments.rounds):
        for (batch, name), taken in pairs.items():
            order = (name, PLAIN) if number % 2 else (PLAIN, name)
            pair = {each: step_ms(client, prompts[:batch], each, arguments.tokens) for each in order}
            taken.append({"option_ms": pair[name], "plain_ms": pair[PLAIN]})
    return pairs


def step_ms(client: Client, prompts: list[list[int]], name: str, tokens: int) -> float:
    """Return the milliseconds of a step of these prompts with an option. Raises RuntimeError for a short output."""
    done = client.generate(prompts, max_new_tokens=tokens, **(SHARED | OPTIONS[name]))
    counts = {len(completion.token_ids) for completion in done}
    if counts != {tokens}:
        raise RuntimeError(f"{name}: outputs of {counts} tokens, not of {tokens}")
    times = [completion.timings for completion in done]
    taken_ns = max(each.total_ns for each in times) - max(each.first_token_ns for each in times)
    return taken_ns / 1e6 / (tokens - 1)


def _row(batch: int, name: str, pairs: list[dict[str, float]]) -> dict[str, Any]:
    """Return a row of medians and quartiles; ratios are those of the pairs."""
    return {
        "batch": batch,
        "option": name,
        "pairs": len(pairs),
        "ms": str(quartiles([pair["option_ms"] for pair in pairs])),
        "plain, ms": str(quartiles([pair["plain_ms"] for pair in pairs])),
        "to plain": str(quartiles([pair["option_ms"] / pair["plain_ms"] for pair in pairs])),
    }
