"""Measure a cell: a fresh engine over the emulated link that costs no core, a warm-up, a block of each workload."""

from __future__ import annotations

import time
from collections.abc import Mapping
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

    def config(self, cell: Cell, system: System, rate: str, **more: Option) -> Config:
        """Return the configuration of a cell over a link of so many bytes a second."""
        options = {"model": str(self.folder), "tier": "host", "link": "dma", "link_rate": rate}
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

    def run_blocks(self, client: Client, batch: int) -> tuple[list[Block], list[list[int]]]:
        """Run the counted blocks; return them and the token ids of every sequence."""
        blocks, generated = [], []
        for number in range(self.rounds):
            for form in self.workloads:
                asked = ask(self.folder, form, number, batch)
                tokens, times = _decode(client, asked, self.tokens, 1000 * (number + 1))
                blocks.append(_block(form, times))
                generated += tokens
        return blocks, generated


def measure(work: Work, cell: Cell, system: System, rate_bytes_per_s: float, oracle: str = "") -> Result:
    """Run a cell. `oracle`: recording of its requests. Raises ExpertFlowError if the engine cannot do it."""
    more: dict[str, Option] = {"oracle_routes": oracle} if oracle else {}
    rate = f"{rate_bytes_per_s:.0f}B" if rate_bytes_per_s else UNBOUND_RATE
    with Supervisor(work.config(cell, system, rate, **more)) as engine, Client(engine.address) as client:
        work.warm_up(client, system, cell.batch)
        before = read_counters(client)
        blocks, generated = work.run_blocks(client, cell.batch)
        after = read_counters(client)
        facts = client.stats().facts["loader"]
    grown = subtract_counters(after, before)
    return Result(
        system=cell.system,
        model=cell.model,
        slots=cell.slots,
        batch=cell.batch,
        link=cell.link,
        rate_bytes_per_s=rate_bytes_per_s,
        blocks=blocks,
        steps=grown["steps"],
        hits=grown["hits"],
        misses=grown["misses"],
        loads=grown["loads"],
        useful=grown["useful"],
        wasted=grown["wasted"],
        loaded_bytes=grown["bytes"],
        compute_s=round(grown["busy_ns"] / 1e9, 4),
        transfer_s=round(grown["bytes"] / rate_bytes_per_s, 4) if rate_bytes_per_s else 0.0,
        elapsed_s=round(sum(block["seconds"] for block in blocks), 4),
        accuracy=after["accuracy"],
        way=_way(after),
        slots_bytes=int(facts["slots"]) * int(facts["slot_bytes"]),
        experts_bytes=int(facts["experts_bytes"]),
        generated=generated,
    )


def record(work: Work, cell: Cell, system: System, folder: Path) -> None:
    """Run the requests of a cell with everything resident, and record their routing for the oracle."""
    config = work.config(cell._replace(slots="100%"), system, UNBOUND_RATE, record=str(folder))
    with Supervisor(config) as engine, Client(engine.address) as client:
        work.warm_up(client, system, cell.batch)
        work.run_blocks(client, cell.batch)


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
