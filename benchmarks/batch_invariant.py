"""Measure the price of batch_invariant: a decode step and a prefill with it and without, in one process.

python -m expertflow.benchmarks.batch_invariant --model r --out docs/results/batch-invariant-r.json

Both kinds run in the same process, on the same prompts and forced tokens, in blocks that alternate; a ratio compares
neighbouring blocks. Once with every expert resident, once with a quarter of the slots, from disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from expertflow.ipc.messages import DropUnit, RequestRow, RunStep, Sampling
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.sampling.failure import RowFailed
from expertflow.workers.model.unit import RowAbilities, Unit
from rich.console import Console
from rich.table import Table

from .models import folder_of, survey_of

SHARES = {"resident": 1.0, "25 % from disk": 0.25}
KINDS = (False, True)
"""Without batch_invariant, and with it."""
WARM_STEPS = 2


@dataclass(frozen=True)
class Price:
    """Time of one kind of step, in ms: the median over all blocks, and the ratio of each pair of blocks."""

    where: str
    what: str
    without_ms: float
    with_ms: float
    ratios: list[float]

    @property
    def ratio(self) -> float:
        """Return the median ratio: how many times as long a step takes with the option."""
        return statistics.median(self.ratios)


class ForcedTokens:
    """A chooser whose tokens depend on row and output index alone, so that both kinds run the same text."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def choose(self, step: RunStep, unit: Unit, logits: torch.Tensor) -> list[int | RowFailed]:
        """Return a token for each row."""
        pairs = zip(unit.numbers, unit.output_indices, strict=True)
        return [random.Random(f"{number % 1000} {index}").randrange(3, self._vocabulary) for number, index in pairs]


class Measured:
    """A runtime that times its steps; both kinds have the same row numbers but for a multiple of 1000."""

    def __init__(self, runtime: LocalRuntime, vocabulary: int) -> None:
        self._runtime, self._vocabulary = runtime, vocabulary
        self._steps = self._rows = 0

    def prefill(self, rows: int, tokens: int, batch_invariant: bool) -> float:
        """Start unit 0 or 1, by kind, with `rows` prompts, in place of its last one; return the time in ms."""
        self._rows += 1000
        self._runtime.order(DropUnit(int(batch_invariant)))
        admit = [RequestRow(self._rows + row, self._prompt(row, tokens), 0, Sampling()) for row in range(rows)]
        return self._run(int(batch_invariant), batch_invariant, admit)

    def decode(self, steps: int, batch_invariant: bool) -> float:
        """Run so many steps of a kind's unit; return the median time in ms."""
        return statistics.median(self._run(int(batch_invariant), batch_invariant, []) for _ in range(steps))

    def _prompt(self, row: int, tokens: int) -> list[int]:
        rng = random.Random(f"prompt {row}")
        return [rng.randrange(3, self._vocabulary) for _ in range(tokens)]

    def _run(self, unit: int, batch_invariant: bool, admit: list[RequestRow]) -> float:
        self._steps += 1
        step = RunStep(number=self._steps, unit=unit, admit=admit, batch_invariant=batch_invariant)
        started = time.perf_counter()
        stepped, _ = self._runtime.run(step)
        assert not stepped.failed
        return 1e3 * (time.perf_counter() - started)


def main() -> None:
    arguments = parse_arguments()
    survey = survey_of(folder_of(arguments.model))
    prices = [price for where, share in SHARES.items() for price in _measure(survey, where, share, arguments)]
    machine = f"{cpu_kind()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads"
    _show(f"model {arguments.model}, {survey.dtype}; {machine}", prices)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        rows = [{**asdict(price), "ratio": price.ratio} for price in prices]
        figures = {"model": arguments.model, "machine": machine, "torch": torch.__version__, "rows": rows}
        arguments.out.write_text(json.dumps(figures, indent=1))


def _measure(survey: Survey, where: str, share: float, arguments: argparse.Namespace) -> list[Price]:
    tokens = ForcedTokens(survey.vocabulary)
    slots = max(1, int(share * survey.expert_count))
    with LocalRuntime(survey, slots, RowAbilities.of(survey.rows), tokens.choose) as runtime:
        measured = Measured(runtime, survey.vocabulary)
        return [price for batch in arguments.batches for price in _measure_batch(measured, where, batch, arguments)]


def _measure_batch(measured: Measured, where: str, batch: int, arguments: argparse.Namespace) -> list[Price]:
    """Return the price of a decode step and of a prefill with `batch` rows."""
    prefills = _pairs(lambda kind: measured.prefill(batch, arguments.prompt, kind), arguments.prefills + 1)
    for kind in KINDS:
        measured.decode(WARM_STEPS, kind)
    decodes = _pairs(lambda kind: measured.decode(arguments.steps, kind), arguments.blocks)
    return [
        _price(where, f"decode, {batch} rows", decodes),
        _price(where, f"prefill, {batch} x {arguments.prompt}", prefills[1:]),  # the first pair warms up
    ]


def _pairs(measure: Callable[[bool], float], count: int) -> list[tuple[float, float]]:
    """Measure without the option and with it, `count` times; each kind comes first as often, or once more."""
    pairs = []
    for number in range(count):
        order = KINDS if number % 2 == 0 else KINDS[::-1]
        times = {kind: measure(kind) for kind in order}
        pairs.append((times[False], times[True]))
    return pairs


def _price(where: str, what: str, pairs: list[tuple[float, float]]) -> Price:
    without, with_option = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Price(where, what, without, with_option, [later / earlier for earlier, later in pairs])


def cpu_kind() -> str:
    """Return the name of the processor, as the system tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _show(title: str, prices: list[Price]) -> None:
    table = Table(title=title)
    for name in ("", "", "without", "with batch_invariant", "times as long (least to most)"):
        table.add_column(name, justify="right" if name else "left")
    for price in prices:
        spread = f"{price.ratio:.2f} ({min(price.ratios):.2f}-{max(price.ratios):.2f})"
        table.add_row(price.where, price.what, f"{price.without_ms:.1f} ms", f"{price.with_ms:.1f} ms", spread)
    Console(width=140).print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", choices=("r", "widened"), default="r", help="r: random OLMoE of 3.3 GB")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="rows in a step")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=8, help="decode steps in a block")
    parser.add_argument("--blocks", type=int, default=5, help="pairs of blocks")
    parser.add_argument("--prefills", type=int, default=3, help="pairs of prefills")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
