"""Compare all processes, every expert resident, with the fastest resident transformers (S1, S2), and with the same
compute in one process (S6).

python -m expertflow.benchmarks.resident --model r --out docs/results/resident-r.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expertflow import Client, Config, Supervisor
from expertflow.runtime.engine.stages import KEPT_MEMORY
from rich.console import Console
from rich.table import Table

from .machine import cpu_kind
from .models import folder_of
from .report import write_json

BACKENDS = ("eager", "grouped_mm")
PROMPT = 32
LONG_ROWS, LONG_TOKENS = 8, 512
WARM_STEPS = 4
PREFILLS = 3


def main() -> None:
    arguments = parse_arguments()
    folder = folder_of(arguments.model)
    rounds = [_round(folder, arguments.batches, arguments.steps, seed) for seed in range(arguments.rounds)]
    rows = [*(_decode_row(rounds, batch) for batch in arguments.batches), _prefill_row(rounds)]
    _show(arguments.model, rows, arguments.rounds)
    write_json(arguments.out, {"rows": rows, "rounds": rounds})


def _round(folder: Path, batches: list[int], steps: int, seed: int) -> dict[str, dict[str, Any]]:
    """Run every contender once, the same tokens for all."""
    rng = random.Random(seed)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]

    def prompts(rows: int, tokens: int) -> list[list[int]]:
        return [[rng.randrange(3, vocabulary) for _ in range(tokens)] for _ in range(rows)]

    order: dict[str, Any] = {
        "folder": str(folder),
        "prefill": prompts(LONG_ROWS, LONG_TOKENS),
        "batches": [{"rows": rows, "prompts": prompts(rows, PROMPT)} for rows in batches],
    }
    ours = _run_engine(order, steps)
    others = {kind: _run_alone(order, kind) for kind in ("local", *BACKENDS)}
    return {"ours": ours, **others}


def _run_engine(order: dict[str, Any], steps: int) -> dict[str, Any]:
    """Run all processes; the tokens that were sampled are left in the order, to be forced on the others."""
    most = max(LONG_ROWS, *(batch["rows"] for batch in order["batches"]))
    config = Config.load("cpu-disk", model=order["folder"], expert_memory="100%", batch_size=most, kv_memory="2GiB")
    with Supervisor(config) as engine, Client(engine.address) as client:
        for _ in range(2):
            _prefill(client, order["prefill"])
        figures: dict[str, Any] = {"prefill_s": [_prefill(client, order["prefill"]) for _ in range(PREFILLS)]}
        figures["decode_ms"], figures["messages"] = {}, {}
        for batch in order["batches"]:
            sent = _messages(client)
            times, batch["tokens"] = _decode(client, batch["prompts"], steps)
            figures["decode_ms"][str(batch["rows"])] = 1e3 * statistics.median(times[WARM_STEPS:])
            figures["messages"][str(batch["rows"])] = (_messages(client) - sent) / steps
    return figures


def _prefill(client: Client, prompts: Sequence[Sequence[int]]) -> float:
    started = time.perf_counter()
    client.generate([list(prompt) for prompt in prompts], max_new_tokens=1, eos_ids=[])
    return time.perf_counter() - started


def _decode(client: Client, prompts: Sequence[Sequence[int]], steps: int) -> tuple[list[float], list[list[int]]]:
    batch = client.submit(
        [list(prompt) for prompt in prompts], max_new_tokens=steps, temperature=1.0, seed=7, eos_ids=[]
    )
    times = [time.perf_counter() for event in batch if event.index == 0 and event.token_ids]
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    return gaps, [list(done.token_ids) for done in batch.results()]


def _messages(client: Client) -> float:
    """Count what all stages have sent to one another so far."""
    time.sleep(1.2)
    return sum(stage.counters["sent"] for stage in client.stats().stages.values())


def _run_alone(order: dict[str, Any], kind: str) -> dict[str, Any]:
    told = json.dumps({**order, "kind": kind})
    # The same compute as in the engine, the memory kept as there.
    environment = {**os.environ, **(KEPT_MEMORY if kind == "local" else {})}
    command = [sys.executable, "-m", f"{__package__}.one_process"]
    done = subprocess.run(command, input=told, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def _decode_row(rounds: list[dict[str, dict[str, Any]]], batch: int) -> dict[str, Any]:
    of = {name: [each[name]["decode_ms"][str(batch)] for each in rounds] for name in rounds[0]}
    messages = [each["ours"]["messages"][str(batch)] for each in rounds]
    return _row(f"decode, batch {batch}", "ms", of) | {"messages a step": statistics.median(messages)}


def _prefill_row(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    of = {name: [statistics.median(each[name]["prefill_s"]) for each in rounds] for name in rounds[0]}
    return _row(f"prefill, {LONG_ROWS} x {LONG_TOKENS}", "s", of)


def _row(what: str, unit: str, of: dict[str, list[float]]) -> dict[str, Any]:
    """Return a row: speed against the best backend of the same round, and cost against one process."""
    best = [min(times) for times in zip(*(of[name] for name in BACKENDS), strict=True)]
    faster = [theirs / ours for theirs, ours in zip(best, of["ours"], strict=True)]
    cost = [ours / alone for ours, alone in zip(of["ours"], of["local"], strict=True)]
    medians = {name: statistics.median(times) for name, times in of.items()}
    return {"what": what, "unit": unit, **medians, "of resident": faster, "of one process": cost}


def _show(model: str, rows: list[dict[str, Any]], rounds: int) -> None:
    title = f"model {model}, all experts resident; medians of {rounds} rounds (least to most)"
    table = Table(title=title, caption=cpu_kind())
    for name in (
        "",
        "ours",
        "one process",
        *BACKENDS,
        "speed, of the best backend",
        "time, of one process",
        "messages",
    ):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        times = [f"{row[name]:.4g} {row['unit']}" for name in ("ours", "local", *BACKENDS)]
        messages = f"{row['messages a step']:.1f}" if "messages a step" in row else ""
        table.add_row(row["what"], *times, _spread(row["of resident"]), _spread(row["of one process"]), messages)
    Console(width=160).print(table)


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", choices=("r", "widened"), default="r", help="r: random OLMoE of 3.3 GB")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=24, help="tokens generated for each prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
