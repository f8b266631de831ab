"""Measure what our own code costs a token, as requests, rows, experts and layers grow: at most 10 % more a doubling.

python -m expertflow.benchmarks.growth --out docs/results/growth

Real processes run tiny random models, so that our own work is nearly all there is. Counted is processor time, of all
threads: scheduler, loader, predictor, supervisor, client; of compute, all that is not the model's own code, nor the
kernels of the experts. A layer's work is done for each layer, so for layers the cost is that of a token and layer.
`cores`: the pure cores alone (cores.py), which are driven to larger shapes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from expertflow import Client, Config, Supervisor
from expertflow.runtime.engine.stages import stage_plans
from rich.console import Console
from rich.table import Table

from ..counters import thread_ns
from ..machine import cpu_kind
from ..plots.growth import draw_growth
from ..report import write_json
from .compute import ALL, FORWARD, KERNELS, LAYERS
from .cores import Shape, residency_costs, scheduler_cost

TOP_K, VOCABULARY, WARM_STEPS = 4, 256, 10
CLIENT_WINDOW = 250
PARTS = ("scheduler", "loader", "predictor", "supervisor", "client", "compute")
AXES: dict[str, list[int]] = {
    "queued": [1, 8, 64, 512, 2000],
    "rows": [1, 4, 16, 64],
    "experts": [8, 32, 128, 256],
    "layers": [4, 12, 48],
}


@dataclass(frozen=True)
class Point:
    """Describe one model and load."""

    queued: int = 0
    rows: int = 8
    experts: int = 32
    layers: int = 6


@dataclass
class Cost:
    """Hold microseconds of processor time a token (layers: a token and layer); medians, and the spread of the sum."""

    axis: str
    value: int
    parts: dict[str, float]
    total: float
    least: float
    most: float
    cpu: str = field(default_factory=cpu_kind)


def save_model(folder: Path, point: Point) -> Path:
    """Save a tiny random OLMoE and return its folder."""
    import torch
    from transformers import OlmoeConfig, OlmoeForCausalLM

    config = OlmoeConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=16, num_hidden_layers=point.layers,
        num_attention_heads=2, num_key_value_heads=2, num_experts=point.experts, num_experts_per_tok=TOP_K,
        max_position_embeddings=4096, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    target = folder / f"model-{point.layers}-{point.experts}"
    if not target.exists():
        OlmoeForCausalLM(config).save_pretrained(target)
    return target


class Bench:
    """Run one engine through many windows of steps."""

    def __init__(self, folder: Path, point: Point, stack: ExitStack) -> None:
        self._spent = np.memmap(folder / "spent", dtype=np.int64, mode="w+", shape=4)
        os.environ["GROWTH_FILE"] = str(folder / "spent")
        config = Config.load(
            "cpu-host", model=str(save_model(folder, point)), expert_memory="25%", batch_size=max(point.rows, 8),
            units="one", grouping="off", prediction="on", compute_threads=1, kv_memory="1GiB",
        )  # fmt: skip
        script = ("-P", "-m", f"{__package__}.compute")
        plans = [p._replace(arguments=script) if p.stage == "compute" else p for p in stage_plans(config)]
        self._engine = stack.enter_context(Supervisor(config, plans=plans))
        self._client = stack.enter_context(Client(self._engine.address))
        self._stack = stack

    def cost(self, point: Point, steps: int) -> dict[str, float]:
        """Return microseconds a token by part, over `steps` steps of `rows` rows while `queued` requests wait."""
        prompts = [[1 + (7 * row + at) % (VOCABULARY - 1) for at in range(8)] for row in range(point.rows)]
        batch = self._client.submit(
            prompts, max_new_tokens=steps + 2 * WARM_STEPS + 5, temperature=1.0, seed=1, eos_ids=[]
        )
        events = (event for event in batch if event.index == 0 and event.token_ids)
        next(events)
        with self._waiting(point.queued):
            for _ in range(WARM_STEPS):
                next(events)
            before = self._now()
            for _ in range(steps):
                next(events)
            after = self._now()
            batch.cancel()
            batch.results()
        return {name: (after[name] - before[name]) / 1e3 / (steps * point.rows) for name in before}

    @contextmanager
    def _waiting(self, count: int) -> Iterator[None]:
        """Queue requests behind those that run, with as many clients as their windows need."""
        with ExitStack() as stack:
            for start in range(0, count, CLIENT_WINDOW):
                client = stack.enter_context(Client(self._engine.address))
                client.submit([[1] * 8] * min(CLIENT_WINDOW, count - start), max_new_tokens=4)
            yield

    def _now(self) -> dict[str, int]:
        stages = self._client.stats().stages
        spent = {name: thread_ns(stages[name].pid) for name in ("scheduler", "loader", "predictor")}
        forward, layers, kernels = (int(self._spent[place]) for place in (FORWARD, LAYERS, KERNELS))
        spent["client"] = time.thread_time_ns()
        spent["supervisor"] = time.process_time_ns() - spent["client"]
        spent["compute"] = int(self._spent[ALL]) - forward + layers - kernels
        return spent


def measure(axis: str, values: list[int], repeats: int, steps: int) -> list[Cost]:
    """Measure one axis, with an engine for each model; for queues and rows, one for all."""
    costs: list[Cost] = []
    points = [Point(**{axis: value}) for value in values]
    shared = axis in ("queued", "rows")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = Bench(Path(folder), max(points, key=lambda point: point.rows), stack) if shared else None
        for value, point in zip(values, points, strict=True):
            with ExitStack() as own:
                runs = _runs(bench or Bench(Path(folder), point, own), point, repeats, steps)
            costs.append(_summary(axis, value, runs, point.layers if axis == "layers" else 1))
    return costs


def _runs(bench: Bench, point: Point, repeats: int, steps: int) -> list[dict[str, float]]:
    bench.cost(point, steps)  # slots fill, sources prove themselves
    return [bench.cost(point, steps) for _ in range(repeats)]


def _summary(axis: str, value: int, runs: list[dict[str, float]], share: int) -> Cost:
    totals = [sum(run.values()) / share for run in runs]
    parts = {name: round(statistics.median(run[name] for run in runs) / share, 2) for name in PARTS}
    return Cost(axis, value, parts, round(statistics.median(totals), 2), round(min(totals), 2), round(max(totals), 2))


def cores(repeats: int) -> list[Cost]:
    """Measure scheduler, ledger, holdings and predictor alone, at shapes that no real run here reaches in time."""
    costs: list[Cost] = []
    for queued in (1, 8, 64, 512, 2000):
        costs.append(_core_cost("queued", queued, [{"scheduler": scheduler_cost(8, queued)} for _ in range(repeats)]))
    for axis, shapes in CORE_SHAPES.items():
        for shape in shapes:
            runs = [residency_costs(shape, 4, 8) for _ in range(repeats)]
            share = 1 / shape.layers if axis in ("rows", "experts") else 1
            value = getattr(shape, axis) if axis != "both" else shape.layers * shape.experts
            costs.append(_core_cost(axis, value, [{k: v / share for k, v in run.items()} for run in runs]))
    return costs


CORE_SHAPES = {
    "rows": [Shape(rows=rows) for rows in (1, 4, 16, 64)],
    "experts": [Shape(experts=experts) for experts in (8, 32, 128, 256)],
    "layers": [Shape(layers=layers) for layers in (4, 12, 48)],
}


def _core_cost(axis: str, value: int, runs: list[dict[str, float]]) -> Cost:
    totals = [sum(run.values()) for run in runs]
    grouped: dict[str, list[float]] = {}
    for run in runs:
        of_run: dict[str, float] = {}
        for part, cost in run.items():
            name = part.partition(",")[0]
            of_run[name] = of_run.get(name, 0.0) + cost
        for name, cost in of_run.items():
            grouped.setdefault(name, []).append(cost)
    parts = {name: round(statistics.median(each), 2) for name, each in grouped.items()}
    return Cost(f"cores: {axis}", value, parts, round(statistics.median(totals), 2), min(totals), max(totals))


def growth_a_doubling(costs: list[Cost]) -> float:
    """Return the mean factor, less 1, from the first to the last."""
    return (costs[-1].total / costs[0].total) ** (1 / math.log2(costs[-1].value / costs[0].value)) - 1


def by_axis(costs: list[Cost]) -> dict[str, list[Cost]]:
    axes: dict[str, list[Cost]] = {}
    for cost in costs:
        axes.setdefault(cost.axis, []).append(cost)
    return axes


def show(costs: list[Cost]) -> None:
    names = list(dict.fromkeys(name for cost in costs for name in cost.parts))
    table = Table(title="processor time of our own code, µs a token (layers: a token and layer)", caption=cpu_kind())
    for name in ("axis", "value", *names, "sum", "least–most", "a doubling"):
        table.add_column(name, justify="right")
    for each in by_axis(costs).values():
        for cost in each:
            growth = f"{100 * growth_a_doubling(each):+.1f} %" if cost is each[-1] else ""
            parts = [f"{cost.parts[name]:.1f}" if name in cost.parts else "" for name in names]
            table.add_row(
                cost.axis, str(cost.value), *parts, f"{cost.total:.1f}", f"{cost.least:.1f}–{cost.most:.1f}", growth
            )
        table.add_section()
    Console(width=150).print(table)


def main() -> None:
    arguments = parse_arguments()
    costs: list[Cost] = []
    for axis in arguments.axes:
        costs += cores(arguments.repeats) if axis == "cores" else measure(
            axis, AXES[axis], arguments.repeats, arguments.steps
        )  # fmt: skip
    if arguments.out:
        costs = _kept(arguments.out.with_suffix(".json"), costs) + costs
        rows: list[dict[str, Any]] = [asdict(cost) for cost in costs]
        write_json(arguments.out.with_suffix(".json"), rows)
        draw_growth(rows, arguments.out.with_suffix(".png"))
    show(costs)


def _kept(file: Path, new: list[Cost]) -> list[Cost]:
    """Read the axes of an earlier run that were not measured anew."""
    measured = {cost.axis for cost in new}
    rows = json.loads(file.read_text()) if file.exists() else []
    return [Cost(**({"cpu": "not said"} | row)) for row in rows if row["axis"] not in measured]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--axes", nargs="+", choices=[*AXES, "cores"], default=[*AXES, "cores"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="decode steps of a window")
    parser.add_argument("--out", type=Path, help="write FILE.json and FILE.png; axes of an earlier run stay")
    return parser.parse_args()


if __name__ == "__main__":
    main()
