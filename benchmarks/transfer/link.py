"""Measure how well transfers hide behind compute on a link where they take as long: step over the larger of the two.

The widened model, host tier. A resident run records the routing and says how long computing takes by itself. The same
sequences run with slots for a share of the experts and an oracle that was told this routing, with memory as the link:
so many bytes it loads. From both follows the rate of the emulated link on which its loads take as long as computing;
then the oracle, the shipped predictor and plain LRU run over that link. "transfer" is what a run's own loads take on
the link by themselves; the target is a step of at most 1.2 times the larger of transfer and compute.

The emulated link copies with a processor core, which a device's copy engine would not: compute has one thread here, so
that the copies have the other core; the loader's processor time is told. Both still share the memory's bandwidth.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from expertflow import Client, Config, Supervisor

from ..contenders.small import quantised_folder
from ..counters import read_counters, subtract_counters, thread_ns
from ..models import held_out_prompts, widened
from ..report import show_table

WARM_TOKENS = 24
CONTENDERS: dict[str, dict[str, str]] = {
    "oracle": {"predictor": "oracle"},
    "oracle, no hints": {"predictor": "oracle", "hints": "off"},
    "shipped predictor": {},
    "hints alone": {"predictor": "none"},
    "LRU on demand": {"predictor": "none", "hints": "off", "policy": "lru"},
}


@dataclass
class Run:
    """Hold one contender, a step of all rows; medians over blocks."""

    contender: str
    step_ms: float
    compute_ms: float
    """With everything resident."""
    transfer_ms: float
    """Its own loads on the link, by themselves."""
    ratio: float
    """Step over the larger of the two."""
    least: float
    most: float
    loads: float
    wasted: float
    promoted: float
    stall_ms: float
    loader_cpu_ms: float
    same_tokens: float
    """Share of the tokens that the recorded run had too: an oracle knows the routes of these."""


class Bench:
    """Run the same sequences for everybody."""

    def __init__(self, arguments: argparse.Namespace, folder: str) -> None:
        self._arguments, self._folder = arguments, folder
        self._model: dict[str, Any] = {"model": widened()}
        if arguments.bits:
            self._model = {"model": quantised_folder(widened(), arguments.bits), "experts_in": "packed"}
        self._tokens: list[list[int]] = []
        self._compute_ms: list[float] = []

    def resident(self) -> float:
        """Run with everything resident, record the routing, and return the milliseconds of a step."""
        run = self._run("resident", {"expert_memory": "100%", "record": self._folder}, 0)
        self._compute_ms = [statistics.median(run)]
        return self._compute_ms[0]

    def contender(self, name: str, rate: int) -> Run:
        options = CONTENDERS[name] | {"expert_memory": self._arguments.share}
        if options.get("predictor") == "oracle":
            options["oracle_routes"] = self._folder
        return self._figures(name, rate, self._run(name, options, rate))

    def _run(self, name: str, options: dict[str, str], rate: int) -> list[float]:
        arguments = self._arguments
        config = Config.load(
            "cpu-host", **self._model, batch_size=arguments.rows, units=arguments.units, grouping="off",
            prediction="on", compute_threads=arguments.threads, link_rate=str(rate) if rate else "", **options,
        )  # fmt: skip
        steps, tokens = [], []
        with ExitStack() as stack:
            engine = stack.enter_context(Supervisor(config))
            client = stack.enter_context(Client(engine.address))
            self._block(client, 0)
            before = _read_counters(client)
            for block in range(1, 1 + arguments.blocks):
                step_ms, block_tokens = self._block(client, block)
                steps.append(step_ms)
                tokens += block_tokens
            after = _read_counters(client)
        self.grown = subtract_counters(after, before)
        if not self._tokens:
            self._tokens = tokens
        pairs = [(a, b) for ours, theirs in zip(tokens, self._tokens, strict=True) for a, b in zip(ours, theirs)]  # noqa: B905
        self.same = sum(a == b for a, b in pairs) / len(pairs)
        return steps

    def _block(self, client: Client, block: int) -> tuple[float, list[list[int]]]:
        rows = self._arguments.rows
        prompts = held_out_prompts(rows * (block + 1), characters=60)[-rows:]
        batch = client.submit(
            prompts, max_new_tokens=self._arguments.tokens, temperature=1.0, seed=1000 * block, eos_ids=[]
        )
        times = [time.perf_counter() for event in batch if event.index == 0 and event.token_ids]
        steady = times[WARM_TOKENS:]
        step_ms = 1e3 * (steady[-1] - steady[0]) / (len(steady) - 1)
        return step_ms, [list(done.token_ids) for done in batch.results()]

    def _figures(self, name: str, rate: int, steps: list[float]) -> Run:
        grown, compute = self.grown, self._compute_ms[0]
        count = grown["steps"] / (2 if self._arguments.units == "two" else 1)
        transfer = 1e3 * grown["bytes"] / count / rate if rate else 0.0
        ratios = sorted(step / max(compute, transfer) for step in steps)
        return Run(
            contender=name,
            step_ms=round(statistics.median(steps), 2),
            compute_ms=round(compute, 2),
            transfer_ms=round(transfer, 2),
            ratio=round(statistics.median(ratios), 3),
            least=round(ratios[0], 3),
            most=round(ratios[-1], 3),
            loads=round(grown["loads"] / count, 2),
            wasted=round(grown["wasted"] / count, 2),
            promoted=round(grown["promoted"] / count, 2),
            stall_ms=round(grown["stall_ns"] / count / 1e6, 2),
            loader_cpu_ms=round(grown["loader_cpu_ns"] / count / 1e6, 2),
            same_tokens=round(self.same, 3),
        )

    @property
    def bytes_a_step(self) -> float:
        return self.grown["bytes"] / self.grown["steps"] * (2 if self._arguments.units == "two" else 1)


def _read_counters(client: Client) -> dict[str, float]:
    """Add the processor time of the loader, which carries the copies of the emulated link."""
    counters = read_counters(client)
    return counters | {"loader_cpu_ns": float(thread_ns(client.stats().stages["loader"].pid))}


def measure(arguments: argparse.Namespace) -> tuple[int, list[Run]]:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, folder)
        compute_ms = bench.resident()
        free = bench.contender("oracle", 0)
        rate = round(bench.bytes_a_step / (compute_ms / 1e3))
        return rate, [free, *(bench.contender(name, rate) for name in arguments.contenders)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--bits", type=int, choices=(4, 8), help="of a quantised copy, whose experts stay packed")
    parser.add_argument("--units", choices=("one", "two"), default="one")
    parser.add_argument("--share", default="31.3%", help="expert memory; 31.3 %% are 10 of 32 experts a layer")
    parser.add_argument("--tokens", type=int, default=120, help="of a sequence in a block")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of compute; 2 take the copies' core")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure and show all contenders; return the link's rate and a row each."""
    rate, runs = measure(arguments)
    rows = [asdict(run) for run in runs]
    shape = f"units {arguments.units}, {arguments.rows} rows, {arguments.share} of the experts"
    show_table(f"{shape}, link {rate / 1e9:.2f} GB/s (emulated); the first row: memory as the link", rows)
    return {"link_rate_bytes_per_s": rate, "rows": rows}
