"""Compare who names the experts of the next MoE layer best: its own router, trained gates, or how often each is used.

expertflow trace TRACE --model MODEL --text examples/held_out.txt --hidden 1
python -m expertflow.benchmarks.hint_recall MODEL TRACE

Gates are trained on a part of the sequences; the figures are of the others.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from expertflow.ipc.messages import Progress
from expertflow.runtime.monitor.progress import ProgressView
from expertflow.workers.compute.experts.next_router import NextRouters
from expertflow.workers.compute.experts.routing import RoutingCollector
from expertflow.workers.compute.experts.slots import ExpertWeights
from expertflow.workers.compute.skeleton import load_model
from expertflow.workers.gates.examples import Examples, split_examples
from expertflow.workers.gates.files import load_gates
from expertflow.workers.gates.training import VALIDATION_SHARE, GateOptions, Ranker, recall_at, train_gates
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from expertflow.workers.traces.reading import read_hidden
from rich.console import Console

from .report import show_table

TIMED_TOKENS = 8


def main() -> None:
    arguments = parse_arguments()
    survey = survey_checkpoint(str(arguments.model))
    trace, hidden = read_hidden(arguments.trace)
    options = GateOptions(bottleneck=arguments.bottleneck, seed=arguments.seed)
    _, held_out, lessons = split_examples(trace, hidden, (VALIDATION_SHARE, options.held_out), options.seed)
    with tempfile.TemporaryDirectory() as folder, ProgressView() as view:
        file = Path(folder, "gates.safetensors")
        report = train_gates(arguments.trace, file, options, lambda *news: view(Progress("gates", *news)))
        gates = load_gates(file, survey)
    rankers = {
        "by frequency": _by_frequency(lessons, survey.experts),
        "next router": _next_router(arguments.model),
        f"gates ({arguments.bottleneck})": gates.ranking,
    }
    print_table(rankers, held_out, [survey.top_k, 2 * survey.top_k, 3 * survey.top_k])
    Console().print(f"{report.tokens:,} tokens learned from in {report.epochs} epochs, {len(held_out):,} held out")


def print_table(rankers: dict[str, Ranker], examples: Examples, depths: list[int]) -> None:
    rows = []
    for name, ranking in rankers.items():
        recall = recall_at(examples, ranking, depths)
        shares = {f"recall@{depth}": f"{share:.3f}" for depth, share in zip(depths, recall.mean(axis=0), strict=True)}
        took = {f"ms for {TIMED_TOKENS} tokens": f"{_duration_ms(ranking, examples, depths[-1]):.2f}"}
        rows.append({"ranked by": name, **shares, "worst layer": f"{recall[:, 0].min():.3f}", **took})
    show_table("recall of the next layer's experts, held-out sequences, mean over layers", rows)


def _by_frequency(lessons: Examples, experts: int) -> Ranker:
    counts = [np.bincount(layer.flatten(), minlength=experts) for layer in lessons.routes.transpose(0, 1).numpy()]
    orders = [np.argsort(-count) for count in counts]
    return lambda layer, hidden, depth: np.tile(orders[layer + 1][:depth], (len(hidden), 1))


def _next_router(folder: Path) -> Ranker:
    survey = survey_checkpoint(str(folder))
    model = load_model(survey, _NoExperts(), RoutingCollector())
    routers = NextRouters(model, survey.experts)

    @torch.inference_mode()
    def ranking(layer: int, hidden: torch.Tensor, depth: int) -> np.ndarray | None:
        return routers.ranking(layer, hidden.to(model.dtype), depth)

    return ranking


def _duration_ms(ranking: Ranker, examples: Examples, depth: int) -> float:
    hidden = examples.states[:TIMED_TOKENS, 0].float()
    durations_ns = []
    for _ in range(200):
        started_ns = time.perf_counter_ns()
        ranking(0, hidden, depth)
        durations_ns.append(time.perf_counter_ns() - started_ns)
    return float(np.median(durations_ns)) / 1e6


class _NoExperts:
    """Refuse everything, since only routers are asked."""

    def begin(self, layer: int, experts: list[int]) -> NoReturn:
        raise NotImplementedError

    def stack(self) -> NoReturn:
        raise NotImplementedError

    def finish(self) -> NoReturn:
        raise NotImplementedError

    def stream(self, together: Collection[int] = ()) -> Iterable[list[tuple[int, ExpertWeights]]]:
        raise NotImplementedError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("trace", type=Path, help="folder of a trace with hidden states")
    parser.add_argument("--bottleneck", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
