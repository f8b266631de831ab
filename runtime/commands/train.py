"""`expertflow train`: a predictor learned from a trace."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import tyro
from msgspec import Meta

from ...configs.ranges import Seed
from ...errors import UsageError
from ...ipc.messages import Progress
from ...workers.predictor.judging.vocabularies import align_vocabularies
from ...workers.traces.reading import read_trace
from ...workers.traces.trace import Trace
from ..command_line.base import DONE, Command
from ..monitor.predictor_tables import report_table
from ..monitor.progress import ProgressView
from ..monitor.tables import result_console
from .gate_training import run_gate_training

if TYPE_CHECKING:
    from ...workers.predictor.judging.report import Report

PARTS = 1000
"""Steps of the progress bar."""
MIN_SEQUENCES = 3
"""To learn from, to tell when learning should end, and to judge by."""
PROMPTS = {"path": 0.0, "paper": 0.5}
"""Share of each sequence that is taken as a prompt when decode is judged: the paper's encoder needs one."""


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Learn from a trace which experts tokens use, and say how well that is known for sequences not learned from.

    The predictor belongs to the model whose routing was traced; name it with --predictor-file, or keep it as
    predictor.npz in the model's folder.
    """

    trace: tyro.conf.Positional[Path]
    """Folder that `expertflow trace` wrote, or an npz file."""
    out: Path | None = None
    """File to write; without it the predictor is only judged."""
    kind: Literal["path", "paper", "gates"] = "path"
    """path: small, and knows the routing of earlier tokens; paper: the transformer of the paper, token ids alone;
    gates: name the next layer's experts from the hidden states of a trace, for hints = gates."""
    held_out: Annotated[float, Meta(ge=0, lt=1)] = 0.2
    """Share of the sequences that is kept for judging; 0 with --test learns from all."""
    test: Path | None = None
    """Judge by this trace instead: another domain, or text held out elsewhere."""
    report: Path | None = None
    """File for the figures, as JSON."""
    seed: Seed = 0
    """Of the choice of held-out sequences and of the training."""
    minutes: Annotated[float, Meta(gt=0, le=10**6)] = 10.0
    """Most wall-clock minutes of training."""
    epochs: Annotated[float, Meta(gt=0, le=10**6)] = 10.0
    """Most times that every sequence is learned from."""
    tokens: Annotated[int, Meta(ge=0)] = 30_000
    """Judge by the first sequences, so many tokens at most; 0: by all."""
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Cores to train on."""

    def run(self) -> int:
        _check(self)
        if self.kind == "gates":
            return self._train_gates()
        learned, judged = self._traces()
        with ProgressView() as view:
            figures = self._train(learned, judged, view)
        training = figures.training.words(self.epochs, self.minutes) if figures.training else ""
        result_console().print(report_table(self.kind, figures, training))
        write_report(figures, self.report)
        return DONE

    def _traces(self) -> tuple[Trace, Trace]:
        """What to learn from and what to judge by."""
        trace = read_decoded(self.trace, self.kind)
        if self.held_out and trace.sequences < MIN_SEQUENCES:
            what = f"has {trace.sequences} sequences; some must be held out, and some told apart while it learns"
            raise UsageError(what, str(self.trace), f"Trace {MIN_SEQUENCES} or more")
        learned, judged = trace.split(self.held_out, self.seed) if self.held_out else (trace, trace)
        if self.test is None:
            return learned, judged
        return learned, align_traces(read_decoded(self.test, self.kind), learned, self.test)

    def _train(self, learned: Trace, judged: Trace, view: ProgressView) -> Report:
        from ...workers.predictor.judging.report import compare
        from ...workers.predictor.training.kinds import TRAINERS
        from ...workers.predictor.training.loop import Effort

        effort = Effort(minutes=self.minutes, epochs=self.epochs, threads=self.threads, seed=self.seed)

        def tell(done: float, what: str) -> None:
            view(Progress("train", "training", round(PARTS * done), PARTS))

        view(Progress("train", "training", 0, PARTS))
        trained = TRAINERS[self.kind](learned, effort, tell)
        if self.out is not None:
            trained.save(self.out)  # whoever does not wait for the figures still has it
        view(Progress("train", "judging", 0, 1))
        make = partial(trained.forecaster, judged.vocabulary)
        figures = compare(make, learned, judged, PROMPTS[self.kind], trained.adapts, self.tokens)
        figures = msgspec.structs.replace(figures, training=trained.end)
        view(Progress("train", "judging", 1, 1))
        return figures if self.out is None else trained.write(self.out, figures)

    def _train_gates(self) -> int:
        from ...workers.gates.training import GateOptions

        if self.test is not None or self.report is not None:
            raise UsageError("gates have no --test and no --report", "kind", "Leave them out")
        effort = {"epochs": math.ceil(self.epochs), "minutes": self.minutes}
        options = GateOptions(**effort, held_out=self.held_out, seed=self.seed)
        return run_gate_training(self.trace, self.out, options, self.threads)


def read_decoded(path: Path, kind: str) -> Trace:
    """Read a trace; of a model with an encoder what its decoder was given, since of prompts only ids are known."""
    trace = read_trace(path)
    if trace.encoder_layers and kind == "paper":
        what = "kind 'paper' learns from prompts and outputs as one text, which this model does not read"
        raise UsageError(what, str(path), "Train --kind path, for the decoder's layers")
    return trace.decoder_part()


def align_traces(judged: Trace, learned: Trace, where: Path) -> Trace:
    """Bring the trace to judge by to the token numbers of the other. Raises UsageError if it is of another model."""
    sizes = [(one.layers, one.expert_count, one.top_k) for one in (learned, judged)]
    if sizes[0] != sizes[1] or (learned.vocabulary is None) != (judged.vocabulary is None):
        raise UsageError("is of another model than the trace to learn from", str(where), "Trace the same model")
    return align_vocabularies(judged, learned.vocabulary)


def write_report(figures: Report, file: Path | None) -> None:
    """Write the figures as JSON, if there is a file."""
    if file is not None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2))


def _check(options: Train) -> None:
    if not options.held_out and options.test is None:
        raise UsageError("nothing is left to judge by", "held_out", "Give --test TRACE, or a share above 0")
    for file in (options.out, options.report):
        check_writable(file)


def check_writable(file: Path | None) -> None:
    """Raise UsageError for a file to write whose folder is missing, or which is a folder."""
    if file is not None and not file.parent.is_dir():
        raise UsageError("the folder to write into does not exist", str(file.parent), "Create it first")
    if file is not None and file.is_dir():
        raise UsageError("is a folder", str(file), "Name a file")
