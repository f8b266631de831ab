"""`expertflow train`: learns a predictor, or gates, from a trace."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
import tyro
from msgspec import Meta
from rich.table import Table

from ...configs.checks import Seed
from ...errors import UsageError
from ...ipc.messages import Progress
from ...workers.predictor.base.vocabulary import align_vocabularies
from ...workers.traces.reading import read_trace
from ...workers.traces.trace import Trace
from ..command_line.base import DONE, Command
from ..monitor.predictor_tables import report_table
from ..monitor.progress import ProgressView
from ..monitor.tables import plain_table, result_console

if TYPE_CHECKING:
    from ...workers.gates.training import GateOptions, GateReport
    from ...workers.predictor.judging.report import Report

PARTS = 1000
"""Steps of the progress bar."""
MIN_SEQUENCES = 3
"""One each to learn from, to decide when to stop, and to judge on."""
PROMPTS = {"path": 0.0, "paper": 0.5}
"""Share of each sequence that counts as prompt when decode is judged: the paper's encoder needs a prompt."""


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Learn from a trace which experts tokens use, and judge the result on sequences that were held out.

    The predictor belongs to the model whose routing was traced; name it with --predictor-file, or keep it as
    predictor.npz in the model's folder.
    """

    option_groups: ClassVar = {
        "Training": ("kind", "out", "minutes", "epochs", "threads", "seed"),
        "Judging": ("held_out", "test", "tokens", "report"),
    }
    trace: tyro.conf.Positional[Path]
    """Folder that `expertflow trace` wrote, or an npz file."""
    out: Path | None = None
    """File to write; without it the predictor is only judged."""
    kind: Literal["path", "paper", "gates"] = "path"
    """path: small, and knows the routing of earlier tokens; paper: the transformer of the paper, token ids alone;
    gates: name the next layer's experts from the hidden states of a trace, for hints = gates."""
    held_out: Annotated[float, Meta(ge=0, lt=1)] = 0.2
    """Share of the sequences held out for judging; 0 with --test learns from all."""
    test: Path | None = None
    """Judge on this trace instead: another domain, or text held out elsewhere."""
    report: Path | None = None
    """File for the figures, as JSON."""
    seed: Seed = 0
    """Seed of the choice of held-out sequences and of the training."""
    minutes: Annotated[float, Meta(gt=0, le=10**6)] = 10.0
    """Most wall-clock minutes of training."""
    epochs: Annotated[float, Meta(gt=0, le=10**6)] = 10.0
    """Most times that every sequence is learned from."""
    tokens: Annotated[int, Meta(ge=0)] = 30_000
    """Judge on the first sequences, so many tokens at most; 0: on all."""
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
        """Return the trace to learn from and the trace to judge on."""
        trace = read_decoded(self.trace, self.kind)
        if self.held_out and trace.sequences < MIN_SEQUENCES:
            what = f"has {trace.sequences} sequences; some are held out for judging, and some to decide when to stop"
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

        def report(done: float, what: str) -> None:
            view(Progress("train", "training", round(PARTS * done), PARTS))

        view(Progress("train", "training", 0, PARTS))
        trained = TRAINERS[self.kind](learned, effort, report)
        if self.out is not None:
            trained.save(self.out)  # kept if the judging is interrupted
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
    """Read a trace; of a model with an encoder only what its decoder was given. Raises UsageError for kind `paper`."""
    trace = read_trace(path)
    if trace.encoder_layers and kind == "paper":
        what = "kind 'paper' learns from prompts and outputs as one text, which this model does not read"
        raise UsageError(what, str(path), "Train --kind path, for the decoder's layers")
    return trace.decoder_part()


def align_traces(judged: Trace, learned: Trace, where: Path) -> Trace:
    """Renumber the tokens of the trace to judge on as in the other. Raises UsageError if it is of another model."""
    sizes = [(trace.layers, trace.expert_count, trace.top_k) for trace in (learned, judged)]
    if sizes[0] != sizes[1] or (learned.vocabulary is None) != (judged.vocabulary is None):
        raise UsageError("is of another model than the trace to learn from", str(where), "Trace the same model")
    return align_vocabularies(judged, learned.vocabulary)


def write_report(figures: Report, file: Path | None) -> None:
    """Write the figures as JSON if a file is given."""
    if file is not None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2))


def _check(options: Train) -> None:
    if not options.held_out and options.test is None:
        raise UsageError("nothing is left to judge on", "held_out", "Give --test TRACE, or a share above 0")
    for file in (options.out, options.report):
        check_writable(file)


def check_writable(file: Path | None) -> None:
    """Raise UsageError for a file to write whose folder is missing, or which is a folder."""
    if file is not None and not file.parent.is_dir():
        raise UsageError("the folder to write into does not exist", str(file.parent), "Create it first")
    if file is not None and file.is_dir():
        raise UsageError("is a folder", str(file), "Name a file")


def run_gate_training(trace: Path, out: Path | None, options: GateOptions, threads: int) -> int:
    """Train gates on hidden states, write `out` if given, and print the recall on held-out sequences.

    Returns the exit code. Raises UsageError for a trace without hidden states.
    """
    if not trace.is_dir():
        what = "gates are trained on hidden states, which only the folder of a trace has"
        raise UsageError(what, str(trace), "Trace with --hidden 1, and give that folder")
    import torch

    from ...workers.gates.training import train_gates
    from ...workers.predictor.base.training_end import TrainingEnd

    torch.set_num_threads(threads)
    with ProgressView() as view:
        view(Progress("train", "training gates", 0, 1))
        report = train_gates(trace, out, options, lambda *state: view(Progress("train", *state)))
    end = TrainingEnd(reason=report.ended_by, epochs=report.epochs, steps=0)
    result_console().print(f"training: {end.words(options.epochs, options.minutes)}", soft_wrap=True)
    result_console().print(recall_table(report))
    return DONE


def recall_table(report: GateReport) -> Table:
    """Return the recall of each MoE layer, and the mean."""
    title = f"recall of {report.held_out_tokens:,} held-out tokens; {report.tokens:,} learned from"
    table = plain_table("MoE layer", "recall@k", "recall@2k")
    table.title = title
    for layer, recalls in enumerate(zip(report.recall_at_k, report.recall_at_2k, strict=True), start=1):
        table.add_row(str(layer), *(f"{recall:.3f}" for recall in recalls))
    table.add_row("mean", f"{report.recall_at_k.mean():.3f}", f"{report.recall_at_2k.mean():.3f}")
    return table
