"""Compare a decode step with experts on disk with what it takes at least: computing, or reading what LRU would.

The bound of a step is the larger of a step with all experts resident, and of the bytes that on-demand LRU would load
over the best rate of plain direct reads, measured in between. LRU's and Belady's loads come from replaying the
recorded routing of the very run. Tokens are drawn, and are the same for all contenders. A step is one token of each
row.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from expertflow import Client, Config, Supervisor
from expertflow.runtime.replay.atomic import make_cache, replay
from expertflow.runtime.replay.future import Belady
from expertflow.runtime.replay.source import ReplaySource, open_source
from expertflow.runtime.replay.steps import Uses
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.loader.policies import make_policy
from expertflow.workers.surveyor.surveyor import survey_checkpoint

from ..models import folder_of, held_out_prompts
from ..overlap import merge, shared
from ..report import show_table
from .disk_rate import plain
from .fills import touched_memory

CONTENDERS: dict[str, dict[str, Any]] = {
    "auto": {},
    "hints only": {"predictor": "none", "prediction": "on"},
    "hints and forecasts": {"prediction": "on"},
    "nothing predicted": {"predictor": "none", "hints": "off"},
    "nothing predicted, lfru": {"predictor": "none", "hints": "off", "policy": "lfru"},
    "LRU on demand": {"preset": "on-demand"},
}
TOKENS = {1: 96, 8: 48, 32: 24}
"""New tokens of a sequence in a block, by batch size."""
WARM_TOKENS = 96
TARGETS = {1: 1.4}
TARGET = 1.25


@dataclass
class Block:
    """Hold one batch of sequences, its decode steps only; `first` and `end` are indices into the trace."""

    step_ms: float
    stall_ms: float
    load_ms: float
    """With at least one load under way."""
    loads: int
    first: int
    end: int
    tokens: int


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and show; return one row a model, batch size, share and contender."""
    rows = []
    for name in arguments.models:
        for batch in arguments.batches:
            rows += [{"model": name} | row for row in measure(folder_of(name), batch, arguments)]
            show(rows)
    return rows


def measure(folder: Path, batch: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row a share and contender; the resident engine runs first."""
    survey = survey_checkpoint(str(folder))
    prompts = prompts_for(survey, folder, batch, arguments.blocks + 1)
    resident, _ = run_engine(folder, "100%", {}, prompts, batch)
    resident_ms = statistics.median(block.step_ms for block in resident)
    for share in arguments.shares:
        for name in arguments.contenders:
            rates = [rate_of(survey)]
            blocks, source = run_engine(folder, share, CONTENDERS[name], prompts, batch)
            rates.append(rate_of(survey))
            replayed = [replay_loads(source, block) for block in blocks]
            yield row_of(survey, (name, share, batch), resident_ms, statistics.mean(rates), blocks, replayed)


def prompts_for(survey: Survey, folder: Path, batch: int, blocks: int) -> list[list[Any]]:
    """Return for each block texts if the model has a tokenizer, else random ids."""
    if (folder / "tokenizer.json").exists():
        texts = held_out_prompts(batch * blocks, characters=60)
        return [texts[batch * block : batch * (block + 1)] for block in range(blocks)]
    rng = random.Random(batch)
    return [[[rng.randrange(3, survey.vocabulary) for _ in range(16)] for _ in range(batch)] for _ in range(blocks)]


def rate_of(survey: Survey) -> float:
    """Return bytes a second of plain direct reads: the best of three ways that are the best anywhere (disk_rate.py)."""
    rng = random.Random(0)
    ways = ((1, 4), (2, 4), (4, 2))
    memory = touched_memory(256 << 20)
    return max(plain(survey, size_mb, flight, memory, rng).rate for size_mb, flight in ways)


def run_engine(
    folder: Path, share: str, options: dict[str, Any], prompts: list[list[Any]], batch: int
) -> tuple[list[Block], ReplaySource]:
    """Run all blocks; the first one warms up and lets the engine find its way."""
    with tempfile.TemporaryDirectory() as scratch:
        files = {"trace": str(Path(scratch, "trace")), "timeline": str(Path(scratch, "timeline.json"))}
        given = {"model": str(folder), "expert_memory": share, "batch_size": batch, "kv_memory": "1GiB"} | files
        preset = options.get("preset", "cpu-disk")
        own = {name: value for name, value in options.items() if name != "preset"}
        with Supervisor(Config.load(preset, **(given | own))) as engine, Client(engine.address) as client:
            for number, texts in enumerate(prompts):
                count = (
                    TOKENS.get(batch, 32) if number else max(WARM_TOKENS, TOKENS.get(batch, 32)) // (1 + batch // 16)
                )
                client.generate(texts, max_new_tokens=count, temperature=1.0, seed=number, eos_ids=[])
        source = open_source(Path(files["trace"]), 0, 0)
        return list(blocks_of(source, Path(files["timeline"]), batch))[1:], source


def blocks_of(source: ReplaySource, timeline: Path, batch: int) -> Iterator[Block]:
    """Yield the decode steps between one prefill and the next."""
    log = source.log
    if log is None or source.log_indices is None:
        raise SystemExit("the trace says nothing of its steps")
    decoded, started = log.decoded[source.log_indices], log.started_ns[source.log_indices]
    ended, stalled = (started + log.busy_ns[source.log_indices]), log.stall_ns[source.log_indices]
    events = [event for event in json.loads(timeline.read_text()) if event["ph"] == "X" and event["name"] == "load"]
    spans = np.array([(event["ts"], event["ts"] + event["dur"]) for event in events]).reshape(-1, 2)
    loaded = np.sort(spans[:, 0]) * 1000
    busy = merge(spans)
    tokens = source.uses.tokens
    edges = np.flatnonzero(np.diff(np.concatenate([[0], decoded.astype(int), [0]])))
    for first, end in edges.reshape(-1, 2).tolist():
        rounds = int(tokens[first:end].sum()) / batch
        if rounds < 4:  # between two prefills of one block
            continue
        low, high = np.searchsorted(loaded, [started[first], ended[end - 1]])
        wall_ms, stall_ms = (ended[end - 1] - started[first]) / 1e6, stalled[first:end].sum() / 1e6
        window = np.array([[started[first], ended[end - 1]]]) / 1000
        load_ms = shared(busy, window) / 1000
        count = int(tokens[first:end].sum())
        yield Block(wall_ms / rounds, stall_ms / rounds, load_ms / rounds, int(high - low), first, end, count)


def replay_loads(source: ReplaySource, block: Block) -> dict[str, int]:
    """Count what LRU and Belady would have loaded for the steps of a block, after all that came before."""
    if source.log is None:
        return {}
    uses, slots = source.uses, source.log.header.slots
    loads = {}
    for name in ("lru", "belady"):
        before, after = (_loads(uses.head(count), name, slots) for count in (block.first, block.end))
        loads[name] = after - before
    return loads


def _loads(uses: Uses, name: str, slots: int) -> int:
    if not uses.steps:
        return 0
    top_k = 1  # neither asks for it
    policy = Belady(uses) if name == "belady" else make_policy("lru", uses.layers, uses.experts, top_k)
    return replay(uses, policy, make_cache("pool", uses, slots), bypass=name == "belady").loads


def row_of(
    survey: Survey,
    where: tuple[str, str, int],
    resident_ms: float,
    rate: float,
    blocks: list[Block],
    replayed: list[dict[str, int]],
) -> dict[str, Any]:
    """Return a row: medians over blocks; ratios are of each block."""
    contender, share, batch = where
    rounds = [block.tokens / batch for block in blocks]
    lru = [loads["lru"] / count for loads, count in zip(replayed, rounds, strict=True)]
    bounds = [max(resident_ms, 1e3 * loads * survey.expert_bytes / rate) for loads in lru]
    ratios = [block.step_ms / bound for block, bound in zip(blocks, bounds, strict=True)]
    loads, all_lru, all_belady = (
        sum(block.loads for block in blocks),
        *(sum(each[name] for each in replayed) for name in ("lru", "belady")),
    )
    return {
        "contender": contender,
        "share": share,
        "batch": batch,
        "resident_ms": resident_ms,
        "rate_bytes_per_s": rate,
        "step_ms": statistics.median(block.step_ms for block in blocks),
        "stall_ms": statistics.median(block.stall_ms for block in blocks),
        "load_ms": statistics.median(block.load_ms for block in blocks),
        "rate_while_loading": loads
        * survey.expert_bytes
        / sum(b.load_ms * n / 1e3 for b, n in zip(blocks, rounds, strict=True)),
        "bound_ms": statistics.median(bounds),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "loads_per_step": loads / sum(rounds),
        "lru_loads_per_step": all_lru / sum(rounds),
        "loads_to_lru": loads / max(all_lru, 1),
        "gap_closed": (all_lru - loads) / max(all_lru - all_belady, 1),
        "blocks": [asdict(block) for block in blocks],
    }


def show(rows: list[dict[str, Any]]) -> None:
    shown = [
        {
            **{name: row[name] for name in ("model", "contender", "batch", "share")},
            "ms a step": f"{row['step_ms']:.1f}",
            "stalled": f"{row['stall_ms']:.1f}",
            "loading": f"{row['load_ms']:.1f}",
            "at GB/s": f"{row['rate_while_loading'] / 1e9:.2f}",
            "resident": f"{row['resident_ms']:.1f}",
            "GB/s": f"{row['rate_bytes_per_s'] / 1e9:.2f}",
            "bound": f"{row['bound_ms']:.1f}",
            "to bound": f"{row['ratio']:.2f}{'' if row['ratio'] > TARGETS.get(row['batch'], TARGET) else ' +'}",
            "least": f"{min(row['ratios']):.2f}",
            "most": f"{max(row['ratios']):.2f}",
            "loads": f"{row['loads_per_step']:.1f}",
            "LRU's": f"{row['lru_loads_per_step']:.1f}",
            "to LRU": f"{row['loads_to_lru']:.2f}",
            "gap closed": f"{100 * row['gap_closed']:.0f} %",
        }
        for row in rows
    ]
    show_table("a decode step from disk, against max(resident step, LRU's bytes / disk rate)", shown, left=2)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this measurement."""
    parser.add_argument("--models", nargs="+", choices=("widened", "r"), default=["widened"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--shares", nargs="+", default=["25%", "50%"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=["auto", "LRU on demand"])
    parser.add_argument("--blocks", type=int, default=3)
