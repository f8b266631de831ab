"""How far off is `expertflow plan`'s forecast of tokens a second: three models, four budgets, one and eight rows?

python -m expertflow.benchmarks.plan_forecast --minutes 15 --out docs/results/plan-forecast.json

Measured are the decode steps of an engine after a warm-up, by its own counters. *first*: the forecast of a model that
has never run here, from kernels, disk and the prior. *after a run*: the same after one run with another budget; the
median over the other budgets. The error is of tokens a second, to what was measured.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from expertflow import Client, Config, Supervisor
from expertflow.runtime.client.watching import snapshot_after
from expertflow.runtime.plan.disk_rate import measure_disk_rate
from expertflow.runtime.plan.forecast import Rates
from expertflow.runtime.plan.past_runs import PastRun
from expertflow.runtime.plan.speed import Counted, ModelOnMachine, machine_rates, step_of

from .machine import cpu_kind
from .models import folder_of, held_out_prompts, model_q, survey_of
from .report import show_table, write_json

MODELS = ("widened", "r", "q")
BUDGETS = ("100%", "50%", "25%", "12.5%")
BATCHES = (1, 8)
START_S = 8.0
"""Rough seconds of a start, a warm-up and publishing, of what a case takes."""
WARM_UP_TOKENS, LEAST_TOKENS, MOST_TOKENS, PROMPT_TOKENS = 8, 10, 64, 32


class Cell(NamedTuple):
    """Hold one case: what was measured, and the rates from which it is forecast."""

    budget: str
    slots: int
    rates: Rates
    run: PastRun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--q-layers", type=int, default=3, help="layers of model q, 1.2 GB each")
    parser.add_argument("--folder", type=Path, help="where model q is made and read from; default: the user's cache")
    parser.add_argument("--minutes", type=float, default=15.0, help="for all cases; making a model comes on top")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    rows = [row for name in arguments.models for row in measure_model(name, arguments)]
    figures = summary(rows)
    _show(rows, figures)
    write_json(arguments.out, {"machine": cpu_kind(), "minutes": arguments.minutes, "summary": figures, "rows": rows})


def measure_model(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each budget and batch size of a model."""
    folder = model_q(arguments.q_layers, arguments.folder) if name == "q" else folder_of(name)
    survey = survey_of(folder)
    model = ModelOnMachine(sizes=survey, fingerprint=survey.fingerprint, files=survey.files, kernels=survey.kernels)
    cells = [cell for budget in arguments.budgets for cell in _run_budget(name, model, budget, arguments)]
    return [_row(name, model, cell, cells) for cell in cells]


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median errors over all rows, and by batch size."""
    kinds = {"first": "first_error", "after a run": "later_error"}
    batches = sorted({row["batch"] for row in rows})
    return {
        f"{kind}, {words}": statistics.median(chosen)
        for kind, field in kinds.items()
        for words, batch in [("all", 0), *((f"batch {batch}", batch) for batch in batches)]
        if (chosen := [row[field] for row in rows if row["batch"] == batch or not batch])
    }


def _run_budget(name: str, model: ModelOnMachine, budget: str, arguments: argparse.Namespace) -> list[Cell]:
    """Run one engine with this budget, each batch size in turn."""
    config = Config.load("cpu-disk", model=model.sizes.folder, expert_memory=budget, batch_size=max(arguments.batches))
    disk = measure_disk_rate([Path(file) for file in model.files], config.reads_in_flight)
    rates = machine_rates(model, config, disk)
    cases = len(arguments.models) * len(arguments.budgets) * len(arguments.batches)
    patience_s = max(2.0, 60 * arguments.minutes / cases - START_S)
    with Supervisor(config) as engine, Client(engine.address) as client:
        slots = engine.resources.budgets.slots
        runs = [_measure(name, client, model, slots, batch, patience_s) for batch in arguments.batches]
    said = ", ".join(f"{run.rows:.0f} rows {run.rows / run.step_s:.2f} tokens/s" for run in runs)
    sys.stderr.write(f"{name}, {budget}: {said}\n")
    return [Cell(budget, slots, rates, run) for run in runs]


def _measure(
    name: str, client: Client, model: ModelOnMachine, slots: int, batch: int, patience_s: float
) -> PastRun:
    """Decode with `batch` rows until patience ends, and return what the engine counted."""
    prompts = _prompts(name, batch, model.sizes.vocabulary)
    _decode(client, prompts, WARM_UP_TOKENS, patience_s, seed=1)
    before = Counted.of(snapshot_after(client.stats, time.monotonic_ns()))
    _decode(client, prompts, MOST_TOKENS, patience_s, seed=2)
    after = Counted.of(snapshot_after(client.stats, time.monotonic_ns()))
    names = Counted.__struct_fields__
    grown = Counted(**{field: getattr(after, field) - getattr(before, field) for field in names})
    steps = max(grown.decode_steps, 1)
    return PastRun(
        machine=model.machine_key,
        model=model.model_key,
        share=slots / model.sizes.expert_count,
        rows=grown.decode_tokens / steps,
        steps=steps,
        step_s=grown.decode_ns / steps / 1e9,
        compute_s=(grown.decode_ns - grown.decode_stall_ns) / steps / 1e9,
        experts=grown.decode_experts / steps,
        loads=grown.decode_loads(0) / steps,
        forecast_s=1.0,
    )


def _prompts(name: str, count: int, vocabulary: int) -> list[Any]:
    if name == "widened":
        return held_out_prompts(count)
    rng = random.Random(count)
    return [[rng.randrange(2, vocabulary) for _ in range(PROMPT_TOKENS)] for _ in range(count)]


def _decode(client: Client, prompts: list[Any], tokens: int, patience_s: float, seed: int) -> None:
    """Draw tokens for all prompts together; cancelled when patience ends, but not before a few steps."""
    begun_s, seen = time.monotonic(), 0
    batch = client.submit(prompts, max_new_tokens=tokens, temperature=1.0, seed=seed, eos_ids=[])
    for event in batch:
        seen += len(event.token_ids)
        if seen >= LEAST_TOKENS * len(prompts) and time.monotonic() - begun_s > patience_s:
            batch.cancel()
    batch.results()


def _row(name: str, model: ModelOnMachine, cell: Cell, cells: list[Cell]) -> dict[str, Any]:
    """Return the forecasts of a case beside what was measured."""
    rows = max(1, round(cell.run.rows))
    others = {other.budget for other in cells} - {cell.budget}
    first = step_of(model, cell.slots, rows, cell.rates, [])
    runs = [[other.run for other in cells if other.budget == budget] for budget in sorted(others)]
    later = [step_of(model, cell.slots, rows, cell.rates, each).tokens_per_s for each in runs]
    measured = cell.run.rows / cell.run.step_s
    after = statistics.median(later) if later else first.tokens_per_s
    return {
        "model": name,
        "budget": cell.budget,
        "batch": rows,
        "measured": measured,
        "first": first.tokens_per_s,
        "after a run": after,
        "first_error": abs(first.tokens_per_s / measured - 1),
        "later_error": abs(after / measured - 1),
        "forecast": msgspec.to_builtins(first),
        "read_bytes_per_s": cell.rates.read_bytes_per_s,
        "run": msgspec.to_builtins(cell.run),
    }


def _show(rows: list[dict[str, Any]], figures: dict[str, float]) -> None:
    shown = [
        {
            "model": row["model"],
            "budget": row["budget"],
            "rows": row["batch"],
            "tokens/s": f"{row['measured']:.2f}",
            "first": f"{row['first']:.2f}",
            "error": f"{100 * row['first_error']:.0f} %",
            "after a run": f"{row['after a run']:.2f}",
            "its error": f"{100 * row['later_error']:.0f} %",
        }
        for row in rows
    ]
    show_table("forecasts of tokens a second", shown, left=2)
    errors = [{"median error": name, "%": f"{100 * error:.0f}"} for name, error in figures.items()]
    show_table("median errors (target: at most 25 %)", errors)


if __name__ == "__main__":
    main()
