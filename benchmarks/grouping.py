"""Count how many experts grouping saves: units of equal size from parallel sequences, against arrival order.

python -m expertflow.benchmarks.grouping                  routes of the built-in model on held-out text, run now
python -m expertflow.benchmarks.grouping --trace FILE     routes of an npz file (`experts`, `tokens`, `prompt_offsets`)
python -m expertflow.benchmarks.grouping --path FILE      by the forecasts of a trained path predictor

A fifth of the sequences is held out. The forecaster learns the others, then goes on learning from each step it has
predicted, as in the engine. Both methods group by true routes and by forecasts; what counts are the experts truly used.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from expertflow.configs.schema import Config
from expertflow.ipc.messages import PredictStep, StepRouting
from expertflow.workers.predictor.base.forecaster import Forecaster
from expertflow.workers.predictor.base.model_shape import ModelShape
from expertflow.workers.predictor.path.file import read_path
from expertflow.workers.predictor.path.forecaster import PathForecaster as PathForecaster
from expertflow.workers.predictor.path.forecaster import tokenizer_spelling
from expertflow.workers.predictor.registry import make_forecaster
from expertflow.workers.scheduler.grouping.clustering import kmeans
from expertflow.workers.scheduler.grouping.objective import count_activated
from expertflow.workers.scheduler.grouping.swapping import swap
from expertflow.workers.traces.trace import Trace, read_npz

from .models import EXAMPLES
from .report import show_table

ARRIVAL = "arrival order"
METHODS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"swap": swap, "kmeans": kmeans}
TAUGHT_AT_ONCE = 512


@dataclass
class Tally:
    """Hold one way to group: experts activated, rows that changed their unit, seconds of each call."""

    experts: float = 0.0
    moved: int = 0
    times_s: list[float] = field(default_factory=list)


def main() -> None:
    arguments = parse_arguments()
    trace = read_npz(arguments.trace) if arguments.trace else built_in_trace()
    training, held_out = trace.split()
    forecaster = _trained(arguments.path, trace) if arguments.path else _taught(arguments.predictor, training)
    batches = list(_batches(held_out, arguments.rows, arguments.units, arguments.steps, arguments.batches))
    tallies = measure(forecaster, held_out, batches, arguments.units)
    steps = sum(len(batch) for batch in batches)
    name = arguments.trace.name if arguments.trace else "built-in model"
    show_table(f"{name}: {arguments.units} units of {arguments.rows}, {steps} steps", list(_rows(tallies, steps)))


def _trained(file: Path, trace: Trace) -> Forecaster:
    """Load a path predictor; trained with the same split, it has not seen the held-out sequences."""
    spelling = tokenizer_spelling(str(EXAMPLES / "model")) if trace.vocabulary is None else trace.vocabulary.__getitem__
    return PathForecaster(read_path(file), spelling)


def _taught(predictor: str, training: Trace) -> Forecaster:
    shape = ModelShape(layers=training.layers, experts=training.expert_count, top_k=training.top_k)
    forecaster = make_forecaster(Config.load(predictor=predictor), shape)
    if forecaster is None:
        raise SystemExit("without a predictor there are no forecasts to group by")
    for used in _lessons(training):
        forecaster.learn(used)
    return forecaster


def measure(forecaster: Forecaster, trace: Trace, batches: list[np.ndarray], units: int) -> dict[str, Tally]:
    """Return tallies by way of grouping. A batch is an array [steps, rows] of tokens of the trace."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    for batch in batches:
        arrival = np.repeat(np.arange(units), batch.shape[1] // units)
        present: dict[str, np.ndarray] = {}
        for step, tokens in enumerate(batch):
            routes = {
                "true routes": dense(trace, tokens),
                "forecasts": forecaster.forecast_tokens(_coming(trace, tokens, step)),
            }
            tallies[ARRIVAL].experts += count_activated(routes["true routes"], arrival)
            for name, known in ((f"{name}, {by}", routes[by]) for name in METHODS for by in routes):
                present[name] = _tallied(tallies[name], METHODS[name.split(",")[0]], known, present.get(name, arrival))
                tallies[name].experts += count_activated(routes["true routes"], present[name])
            forecaster.learn(_used(trace, tokens, step))
    return tallies


def _tallied(tally: Tally, group: Callable, routes: np.ndarray, present: np.ndarray) -> np.ndarray:
    started = time.perf_counter()
    groups = group(routes, present)
    tally.times_s.append(time.perf_counter() - started)
    tally.moved += int((groups != present).sum())
    return groups


def dense(trace: Trace, tokens: np.ndarray) -> np.ndarray:
    """Return the routes of tokens, bool [tokens, layers, experts]."""
    routes = np.zeros((len(tokens), trace.layers, trace.expert_count), dtype=bool)
    np.put_along_axis(routes, trace.routes[tokens].astype(np.int64), True, axis=2)
    return routes


def built_in_trace() -> Trace:
    """Return routes of the built-in model on its held-out text, in windows of 512 tokens."""
    import torch
    from expertflow.examples.routing_report import WINDOW_TOKENS, read_ids, read_text
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    folder = EXAMPLES / "model"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = (EXAMPLES / "held_out.txt").read_text()
    ids = torch.tensor(AutoTokenizer.from_pretrained(folder).backend_tokenizer.encode(text).ids)
    routes = read_text(model, ids).chosen.permute(1, 0, 2).numpy().astype(np.uint16)
    return Trace(
        routes=routes,
        token_ids=read_ids(ids).numpy(),
        offsets=np.arange(0, len(routes) + 1, WINDOW_TOKENS),
        expert_count=model.config.num_experts,
    )


def _batches(trace: Trace, rows: int, units: int, steps: int, count: int) -> Iterator[np.ndarray]:
    """Yield indices of tokens, int [steps, rows * units]: stretches of different sequences, drawn at random."""
    rng = np.random.default_rng(0)
    lengths = np.diff(trace.offsets)
    long_enough = np.flatnonzero(lengths >= steps)
    if len(long_enough) < rows * units:
        raise SystemExit(f"only {len(long_enough)} held-out sequences have {steps} tokens; give fewer --steps")
    for _ in range(count):
        chosen = rng.choice(long_enough, rows * units, replace=False)
        starts = trace.offsets[chosen] + rng.integers(0, lengths[chosen] - steps + 1)
        yield starts + np.arange(steps)[:, None]


def _lessons(trace: Trace) -> Iterator[StepRouting]:
    """Yield the training sequences, in some hundred tokens a message."""
    for start in range(0, trace.tokens, TAUGHT_AT_ONCE):
        yield _used(trace, np.arange(start, min(start + TAUGHT_AT_ONCE, trace.tokens)), 0)


def _used(trace: Trace, tokens: np.ndarray, step: int) -> StepRouting:
    rows, positions = _places(trace, tokens)
    return StepRouting(
        step=step, token_ids=trace.token_ids[tokens].tolist(), rows=rows, positions=positions, top_k=trace.top_k,
        experts=trace.routes[tokens].astype("<u2").tobytes(), hits=0, misses=0, stall_ns=0,
    )  # fmt: skip


def _coming(trace: Trace, tokens: np.ndarray, step: int) -> PredictStep:
    rows, positions = _places(trace, tokens)
    return PredictStep(step=step, token_ids=trace.token_ids[tokens].tolist(), rows=rows, positions=positions)


def _places(trace: Trace, tokens: np.ndarray) -> tuple[list[int], list[int]]:
    rows = np.searchsorted(trace.offsets, tokens, side="right") - 1
    return rows.tolist(), (tokens - trace.offsets[rows]).tolist()


def _rows(tallies: dict[str, Tally], steps: int) -> Iterator[dict[str, str]]:
    for name, tally in tallies.items():
        times_ms = 1e3 * np.array(tally.times_s or [0.0])
        yield {
            "grouped by": name,
            "experts a step": f"{tally.experts / steps:.1f}",
            "saved": f"{100 * (1 - tally.experts / tallies[ARRIVAL].experts):.1f} %",
            "rows moved a step": f"{tally.moved / steps:.1f}",
            "median ms": f"{np.median(times_ms):.2f}",
            "slowest ms": f"{times_ms.max():.2f}",
        }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trace", type=Path, help="npz file of routes; without it the built-in model runs")
    parser.add_argument("--predictor", default="table", help="what forecasts, as in the configuration")
    parser.add_argument("--path", type=Path, help="file of a trained path predictor instead (`expertflow train`)")
    parser.add_argument("--units", type=int, default=2)
    parser.add_argument("--rows", type=int, default=8, help="sequences of one unit")
    parser.add_argument("--steps", type=int, default=20, help="tokens of each sequence")
    parser.add_argument("--batches", type=int, default=30)
    return parser.parse_args()


if __name__ == "__main__":
    main()
