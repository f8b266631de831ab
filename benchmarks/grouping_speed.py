"""Measure tokens a second with and without grouping, in one run: engines side by side that take turns, block by block.

python -m expertflow.benchmarks.grouping_speed --tier host --rows 16 --blocks 6

Everything is charged: questions to the predictor, waiting for all units at the end of a round, moving KV rows. Each
block decodes the same prompts with the same seed on every engine; engines that wait for their turn sleep.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from expertflow import Client, Config, Supervisor

from .counters import read_counters
from .models import held_out_prompts, widened
from .report import show_table, write_json

ARRIVAL = "two units, arrival order"
CONTENDERS: dict[str, dict[str, str]] = {
    ARRIVAL: {"units": "two", "grouping": "off"},
    "two units, swap": {"units": "two", "grouping": "swap"},
    "two units, kmeans": {"units": "two", "grouping": "kmeans"},
    "one unit": {"units": "one", "grouping": "off"},
}


@dataclass
class Contender:
    """Hold an engine, the rate of each of its blocks, and its counters before and after."""

    client: Client
    rates: list[float] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)

    def grown(self, name: str) -> float:
        return self.after[name] - self.before[name]


def main() -> None:
    arguments = parse_arguments()
    options: dict[str, object] = {
        "tier": arguments.tier,
        "expert_memory": arguments.share,
        "batch_size": arguments.rows,
        "link_rate": arguments.link_rate if arguments.tier == "host" else "",
        "predictor": arguments.predictor,
        "prediction": "on",
    }
    with ExitStack() as stack:
        contenders = {name: _start(stack, options | CONTENDERS[name]) for name in arguments.contenders}
        for block in range(-1, arguments.blocks):
            _take_turns(contenders, block, arguments.rows, arguments.tokens)
        for contender in contenders.values():
            contender.after = read_counters(contender.client)
    what = f"{arguments.rows} sequences, {arguments.share} of the experts, {arguments.tier} {arguments.link_rate}"
    rows = [_row(name, contender, contenders[ARRIVAL]) for name, contender in contenders.items()]
    show_table(f"widened model, {what}, {arguments.blocks} blocks", rows)
    write_json(arguments.out, {"options": options, "rows": rows})


def _start(stack: ExitStack, options: dict[str, object]) -> Contender:
    engine = stack.enter_context(Supervisor(Config.load("cpu-disk", model=widened(), **options)))
    return Contender(stack.enter_context(Client(engine.address)))


def _take_turns(contenders: dict[str, Contender], block: int, rows: int, tokens: int) -> None:
    """Run one block on each engine, in an order that goes round; block -1 fills slots and tables and is not counted."""
    order = list(contenders.values())
    shift = block % len(order)
    for contender in order[shift:] + order[:shift]:
        rate = _decode(contender.client, held_out_prompts(rows), tokens, seed=block + 1)
        if block < 0:
            contender.before = read_counters(contender.client)
        else:
            contender.rates.append(rate)


def _decode(client: Client, prompts: list[str], tokens: int, seed: int) -> float:
    """Return tokens a second from when every sequence has its first token."""
    batch = client.submit(prompts, max_new_tokens=tokens, temperature=1.0, seed=1000 * seed, eos_ids=[])
    started, silent, counted = time.perf_counter(), set(range(len(prompts))), 0
    for event in batch:
        if silent:
            silent.discard(event.index)
            started = time.perf_counter()
        else:
            counted += len(event.token_ids)
    return counted / (time.perf_counter() - started)


def _row(name: str, contender: Contender, arrival: Contender) -> dict[str, float | str]:
    """Return a row; ratios are of the same block, so that what the machine does to both cancels out."""
    ratios = [mine / theirs for mine, theirs in zip(contender.rates, arrival.rates, strict=True)]
    steps, experts = contender.grown("steps"), contender.grown("hits") + contender.grown("misses")
    return {
        "contender": name,
        "tokens/s": round(statistics.median(contender.rates), 2),
        "to arrival order": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "CPU ms a token": round(1e3 * contender.grown("cpu_s") / contender.grown("tokens"), 1),
        "experts a token": round(experts / contender.grown("tokens"), 2),
        "loads a token": round(contender.grown("loads") / contender.grown("tokens"), 2),
        "regroupings a step": round(contender.grown("regroupings") / steps, 3),
        "rows moved a step": round(contender.grown("rows_moved") / steps, 2),
        "unpredicted": contender.grown("unpredicted"),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tier", choices=("disk", "host"), default="host")
    parser.add_argument("--link-rate", default="", help="host tier: emulate a link of so many bytes a second")
    parser.add_argument("--share", default="25%", help="expert memory")
    parser.add_argument("--rows", type=int, default=16, help="sequences in all")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens of a sequence in a block")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--predictor", default="table")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    if ARRIVAL not in arguments.contenders:
        parser.error(f"--contenders needs '{ARRIVAL}', which the others are compared with")
    return arguments


if __name__ == "__main__":
    main()
