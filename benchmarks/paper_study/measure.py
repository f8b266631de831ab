"""Measure cells side by side: fresh engines over the emulated link that costs no core, and blocks of work in turn."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from expertflow import Client, Config, Supervisor
from expertflow.runtime.prompt_sources.workloads import Format

from ..counters import read_counters, subtract_counters
from ..experiments.systems import Option, System
from .cells import Cell
from .workloads import FORMS, Prompts, ask

WARM_BLOCK = -1
UNBOUND_RATE = "1000GB"
"""A link that nothing waits for."""


class Block(TypedDict):
    """One batch of sequences of one workload."""

    workload: str
    tokens: int
    seconds: float
    later_tokens: int
    """Tokens after the moment when every sequence had its first: no prompt is read from then on."""
    later_seconds: float


class Result(TypedDict):
    """Hold what a cell gave. Counts are those of all its blocks together, prompts included."""

    system: str
    model: str
    slots: str
    batch: int
    link: float
    rate_bytes_per_s: float
    blocks: list[Block]
    steps: float
    hits: float
    misses: float
    loads: float
    loaded_bytes: float
    useful: float
    wasted: float
    compute_s: float
    """Time that compute was at work without waiting for experts."""
    transfer_s: float
    """Time that the link was busy."""
    elapsed_s: float
    accuracy: float
    way: str
    slots_bytes: int
    """Memory that the slots would take where they hold bytes."""
    experts_bytes: int
    generated: list[list[int]]


@dataclass(frozen=True)
class Work:
    """Say what every system does in a cell."""

    folder: Path
    """Folder of the model."""
    files: Mapping[str, Path]
    """Trained files by kind: path, gates, paper."""
    tokens: int
    warm_tokens: int
    settling_tokens: int
    rounds: int
    workloads: tuple[Format, ...] = tuple(FORMS)
    compute_threads: int = 0
    """Threads of compute; 0: as many as the engine chooses."""

    def config(self, cell: Cell, system: System, rate: str, **more: Option) -> Config:
        """Return the configuration of a cell over a link of so many bytes a second."""
        options: dict[str, Option] = {"model": str(self.folder), "tier": "host", "link": "dma", "link_rate": rate}
        options["compute_threads"] = self.compute_threads
        options |= system.options | self._trained(system) | more
        return Config.load(system.preset, **options, expert_memory=cell.slots, batch_size=cell.batch)

    def _trained(self, system: System) -> dict[str, Option]:
        predictor = system.options.get("predictor")
        if predictor == "path" and "path" not in self.files:
            return {"predictor": "table"}
        option = {"gates": "gates_file", "paper": "predictor_file"}.get(system.needs)
        return {option: str(self.files[system.needs])} if option else {}

    def warm_up(self, client: Client, system: System, batch: int) -> None:
        """Let the engine settle on its ways, and predictors learn."""
        tokens = max(self.warm_tokens, self.settling_tokens * system.settles)
        _decode(client, ask(self.folder, self.workloads[0], WARM_BLOCK, batch), tokens, seed=0)

    def run_block(self, client: Client, batch: int, number: int, form: Format) -> tuple[Block, list[list[int]]]:
        """Run one block; return it and the token ids of every sequence."""
        tokens, times = _decode(client, ask(self.folder, form, number, batch), self.tokens, 1000 * (number + 1))
        return _block(form, times), tokens

    def blocks(self) -> list[tuple[int, Format]]:
        """Return the number and the workload of each block, in their order."""
        return list(itertools.product(range(self.rounds), self.workloads))


@dataclass(frozen=True)
class Contender:
    """A cell to be measured, with what it needs."""

    cell: Cell
    system: System
    work: Work
    oracle: str = ""
    """Folder with the recording of its requests."""


class _Engine:
    """The running engine of a contender, warmed up, and what it has done since."""

    def __init__(self, contender: Contender, rate_bytes_per_s: float, stack: ExitStack) -> None:
        self._contender, self._rate_bytes_per_s = contender, rate_bytes_per_s
        cell, system, work = contender.cell, contender.system, contender.work
        more: dict[str, Option] = {"oracle_routes": contender.oracle} if contender.oracle else {}
        rate = f"{rate_bytes_per_s:.0f}B" if rate_bytes_per_s else UNBOUND_RATE
        engine = stack.enter_context(Supervisor(work.config(cell, system, rate, **more)))
        self._client = stack.enter_context(Client(engine.address))
        work.warm_up(self._client, system, cell.batch)
        self._before = read_counters(self._client)
        self._blocks: list[Block] = []
        self._generated: list[list[int]] = []

    def run_block(self, number: int, form: Format) -> None:
        """Run one block."""
        cell, work = self._contender.cell, self._contender.work
        block, generated = work.run_block(self._client, cell.batch, number, form)
        self._blocks.append(block)
        self._generated += generated

    def result(self) -> Result:
        """Return what all blocks together gave."""
        after = read_counters(self._client)
        grown = subtract_counters(after, self._before)
        facts = self._client.stats().facts["loader"]
        rate_bytes_per_s = self._rate_bytes_per_s
        return Result(
            **self._contender.cell._asdict(),
            rate_bytes_per_s=rate_bytes_per_s,
            blocks=self._blocks,
            steps=grown["steps"],
            hits=grown["hits"],
            misses=grown["misses"],
            loads=grown["loads"],
            useful=grown["useful"],
            wasted=grown["wasted"],
            loaded_bytes=grown["bytes"],
            compute_s=round(grown["busy_ns"] / 1e9, 4),
            transfer_s=round(grown["bytes"] / rate_bytes_per_s, 4) if rate_bytes_per_s else 0.0,
            elapsed_s=round(sum(block["seconds"] for block in self._blocks), 4),
            accuracy=after["accuracy"],
            way=_way(after),
            slots_bytes=int(facts["slots"]) * int(facts["slot_bytes"]),
            experts_bytes=int(facts["experts_bytes"]),
            generated=self._generated,
        )


def measure(contenders: Sequence[Contender], rate_bytes_per_s: float) -> list[Result]:
    """Run the blocks of all contenders in turn, each time beginning with the next one; return a result a contender.

    Raises ExpertFlowError if an engine cannot do it.
    """
    with ExitStack() as stack:
        engines = [_Engine(contender, rate_bytes_per_s, stack) for contender in contenders]
        for place, (number, form) in enumerate(contenders[0].work.blocks()):
            first = place % len(engines)
            for engine in engines[first:] + engines[:first]:
                engine.run_block(number, form)
        return [engine.result() for engine in engines]


def record(work: Work, cell: Cell, system: System, folder: Path) -> None:
    """Run the requests of a cell with everything resident, and record their routing for the oracle."""
    config = work.config(cell._replace(slots="100%"), system, UNBOUND_RATE, record=str(folder))
    with Supervisor(config) as engine, Client(engine.address) as client:
        work.warm_up(client, system, cell.batch)
        for number, form in work.blocks():
            work.run_block(client, cell.batch, number, form)


def need_bytes_per_s(result: Result) -> float:
    """Return the rate at which the transfers of on demand take as long as its computing.

    `result` is a run over a link that nothing waits for.
    """
    return result["loaded_bytes"] / result["compute_s"]


def _way(counters: dict[str, float]) -> str:
    units = f"{counters['units_wanted']:.0f} unit{'s' * (counters['units_wanted'] > 1)}"
    return ", ".join([units, *(name for name in ("prediction", "grouping") if counters[f"{name}_wanted"])])


def _decode(client: Client, asked: Prompts, tokens: int, seed: int) -> tuple[list[list[int]], list[list[float]]]:
    """Draw tokens, since greedy text soon repeats itself; return them and the seconds after which each came."""
    started = time.perf_counter()
    batch = client.submit(asked, max_new_tokens=tokens, temperature=1.0, seed=seed, eos_ids=[])
    times: list[list[float]] = [[] for _ in asked]
    for event in batch:
        times[event.index] += [time.perf_counter() - started] * len(event.token_ids)
    return [list(each.token_ids) for each in batch.results()], times


def _block(workload: Format, times: list[list[float]]) -> Block:
    """Return the block of sequences whose tokens came after these seconds."""
    prompts_s, all_s = max(each[0] for each in times), max(each[-1] for each in times)
    return Block(
        workload=workload,
        tokens=sum(map(len, times)),
        seconds=round(all_s, 4),
        later_tokens=sum(each > prompts_s for sequence in times for each in sequence),
        later_seconds=round(all_s - prompts_s, 4),
    )
