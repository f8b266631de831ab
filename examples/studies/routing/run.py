"""The study of routing: `expertflow study routing`.

Trains one small vision-language model for each kind of routing and seed, on the same data for the same processor
seconds, and compares accuracy, cost and specialisation.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from expertflow.errors import UsageError
from rich.console import Console
from torch import nn

from ..resumable import ResultFolder, Row, digest_of, save_rows
from ..scoring.bad_rows import BadRows
from .answering import Answerer
from .costs import BATCHES, IMAGES, expert_bytes, expert_flops, measure_costs
from .kinds import BY_NAME, KINDS, Kind
from .quality import measure_quality
from .question_sets import SEED_FILE, QuestionSets, read_sets, write_sets
from .specialisation import routing_facts, trace_routing
from .stalls import stall_facts
from .tables import show_results
from .train_kind import load_kind, train_kind

PARTS = ("train", "quality", "routing", "stalls", "costs")
SCENES = 200
_QUICK_KINDS = ("smoes", "hard")
_QUICK_ROWS = 8


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--quick", action="store_true", help="two kinds, a second of training each")
    parser.add_argument("--out", type=Path, default=Path("study-routing"), help="folder of the results; a run resumes")
    parser.add_argument("--data", type=Path, help="folder with the published files of VQA-v2, MMBench and SEED-Bench")
    parser.add_argument("--kinds", nargs="+", choices=list(BY_NAME), default=list(BY_NAME))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cpu-minutes", type=float, default=3.0, help="processor minutes of training for each model")
    parser.add_argument("--skip-bad", action="store_true", help="leave out bad rows of --data and count them")
    parser.add_argument("--picture", type=Path, help="draw accuracy against cost into this file (needs matplotlib)")
    parser.add_argument("--save", type=Path, help="write the rows as JSON into this file")
    parser.add_argument("--minutes", type=float, default=0.0, help="start no cell after so many; 0: no limit")


def run(arguments: argparse.Namespace) -> dict[str, object]:
    """Train and measure what is not there yet, show the tables and return the rows."""
    console, bad = Console(stderr=True), BadRows(arguments.skip_bad)
    study = _Study(arguments, bad, console)
    rows = [row for seed in study.seeds for kind in study.kinds if (row := study.row(kind, seed)) is not None]
    show_results(rows, console)
    save_rows(arguments.save, rows)
    if arguments.picture:
        from .picture import draw_picture

        draw_picture(rows, arguments.picture)
    return {"skipped_rows": dict(bad.counts), "left_out": study.results.left_out, "rows": rows}


class _Study:
    """The models and the results of one run."""

    def __init__(self, arguments: argparse.Namespace, bad: BadRows, console: Console) -> None:
        self._arguments = arguments
        self._report = console.log
        self.results = ResultFolder(arguments.out, arguments.minutes, console.log)
        names = _QUICK_KINDS if arguments.quick else arguments.kinds
        self.kinds = [kind for kind in KINDS if kind.name in names]
        self.seeds = range(1 if arguments.quick else arguments.seeds)
        self._sets = self._read_sets(bad)
        self._asked = digest_of([*self._sets.vqa, *self._sets.mmbench, *self._sets.seed])

    def row(self, kind: Kind, seed: int) -> Row | None:
        """Return all that is known of a model; None if there was no time to train it."""
        name = f"{kind.name}-s{seed}"
        parts: Row = {"kind": kind.name, "what": kind.what, "seed": seed}
        steps = {"train": self._train, "quality": self._quality, "costs": self._costs}
        steps |= {"routing": self._routing, "stalls": self._stalls}
        for part in self._arguments.parts:
            if part == "costs" and seed > 0:
                continue  # the times of a kind do not depend on its weights
            compute = partial(steps[part], kind, seed)
            found = self.results.run(f"{part}-{name}", compute, self._settings(part))
            if found is None and part == "train":
                return None
            parts[part] = found
        return parts

    @property
    def _minutes(self) -> float:
        return 1 / 60 if self._arguments.quick else self._arguments.cpu_minutes

    def _settings(self, part: str) -> Row:
        """Return what a part depends on and its name does not say: a quick run is not the beginning of a whole one."""
        asked = {"questions": self._asked} if part == "quality" else {}
        return {"processor minutes": self._minutes, "quick": self._arguments.quick, **asked}

    def _train(self, kind: Kind, seed: int) -> Row:
        checkpoint = self._checkpoint(kind, seed)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        return train_kind(
            kind, seed, 60 * self._minutes, checkpoint, lambda line: self._report(f"{kind.name} {seed}: {line}")
        )

    def _quality(self, kind: Kind, seed: int) -> Row:
        return measure_quality(Answerer(self._model(kind, seed)), self._sets)

    def _routing(self, kind: Kind, seed: int) -> Row:
        trace = trace_routing(self._model(kind, seed), kind.experts)
        facts = routing_facts(trace)
        step_bytes = {rows: expert_bytes(kind, count) for rows, count in facts["experts_a_decode_step"].items()}
        flops = expert_flops(kind, layers=len(trace.chosen))
        return {**facts, "expert_flops_a_token": flops, "expert_bytes_a_step": step_bytes}

    def _stalls(self, kind: Kind, seed: int) -> Row:
        trace = trace_routing(self._model(kind, seed), kind.experts)
        rows = _QUICK_ROWS if self._arguments.quick else trace.chosen.shape[1]
        return stall_facts(replace(trace, chosen=trace.chosen[:, :rows]))

    def _costs(self, kind: Kind, seed: int) -> Row:
        sizes = ((1, 2), (1,)) if self._arguments.quick else (BATCHES, IMAGES)
        return {"times": measure_costs(self._model(kind, seed), *sizes)}

    def _model(self, kind: Kind, seed: int) -> nn.Module:
        torch.set_num_threads(1)
        checkpoint = self._checkpoint(kind, seed)
        if not checkpoint.is_file():
            cell = f"train-{kind.name}-s{seed}.json"
            raise UsageError("is missing, though its training is recorded", str(checkpoint), f"Remove cells/{cell}")
        return load_kind(kind, seed, checkpoint)

    def _checkpoint(self, kind: Kind, seed: int) -> Path:
        return self._arguments.out / "models" / f"{kind.name}-s{seed}.pt"

    def _read_sets(self, bad: BadRows) -> QuestionSets:
        folder = self._arguments.data or self._arguments.out / ("quick-sets" if self._arguments.quick else "sets")
        if self._arguments.data is None and not (folder / SEED_FILE).is_file():
            write_sets(folder, 4 if self._arguments.quick else SCENES)
        return read_sets(folder, bad)
