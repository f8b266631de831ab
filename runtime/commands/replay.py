"""`expertflow replay`: eviction policies over recorded routing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec
import tyro
from msgspec import Meta
from rich.table import Table

from ...configs.checks import Seed
from ...configs.schema import TraceablePredictor
from ...configs.sizes import format_size
from ...errors import UsageError
from ...ipc.messages import Progress
from ..command_line.base import DONE, FAILED, Command
from ..monitor.progress import ProgressView
from ..monitor.tables import UNKNOWN, facts_table, plain_table, result_console, share_text
from ..replay.choices import (
    expert_size_bytes,
    hint_source,
    layer_time_ns,
    make_machine,
    policy_names,
    prediction_maker,
    recorded_timings,
    slot_counts,
)
from ..replay.experiment import BELADY, Experiment, ReplayRow, recorded_row
from ..replay.hints import EmulatedHints
from ..replay.ledger_log import LogReplay, replay_ledger_log
from ..replay.source import ReplaySource, open_source

LEGEND = {
    "slots": "for each layer",
    "found": "share of the experts in use that were in a slot when needed",
    "gap": "share of the loads that the best possible choices (belady) would have saved",
    "r": "experts in use ÷ slots",
}


@dataclass(frozen=True, kw_only=True)
class Replay(Command):
    """Run eviction policies over a recorded trace: hits, loads and waits as they would have been.

    By default it only counts: the experts of a layer of a step are looked up together, then loaded. With --link-rate
    the loader's own decisions run under a virtual clock, so that transfers take time and hide behind compute.
    """

    option_groups: ClassVar = {
        "Sequence": ("batch", "tokens", "held_out", "seed"),
        "Cache": ("policies", "slots", "sharing"),
        "Prediction": ("hints", "predictor", "predictor_file", "forecast_ms", "rank_victims", "belief"),
        "Time": ("link_rate", "layer_ms", "expert_bytes", "message_us", "count"),
    }
    trace: tyro.conf.Positional[Path | None] = None
    """An .npz file, or a folder that `expertflow trace` wrote, or an engine while serving."""
    policies: str = "all"
    """Names separated by commas: popularity,lru,… The bounds belady and sch(16), which know the future, are added."""
    slots: str = "25%"
    """Expert slots, several values separated by commas: so many for each layer on average (16), or a share (25%)."""
    sharing: Literal["pool", "layer"] = "pool"
    """pool: all layers share the slots; layer: each has as many as any other."""
    batch: Annotated[int, Meta(ge=0)] = 0
    """Sequences side by side; 0: the steps as they were recorded, or 1."""
    tokens: Annotated[int, Meta(ge=0)] = 20_000
    """Replay only so many tokens of the trace; 0: all. Recorded steps are always replayed whole."""
    held_out: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Replay only this share of the sequences: those that `expertflow train` with this share and seed holds out."""
    hints: Annotated[str, tyro.conf.arg(metavar="RECALL,PRECISION|recorded")] = ""
    """Hints for each next layer: emulated ones (0.85,0.85), false ones drawn from the token's likely experts; or the
    recorded ones."""
    predictor: Literal["none", TraceablePredictor, "recorded"] = "none"
    """Predictions for whole steps, where a link is given: from this predictor, or the recorded ones."""
    predictor_file: str = ""
    """File that `expertflow train` wrote, for the predictors that are trained."""
    forecast_ms: Annotated[float, Meta(ge=0, le=10**6)] = 2.0
    """Time that a prediction takes."""
    rank_victims: Literal["auto", "always", "never"] = "auto"
    """When predictions rank the victims of eviction, as in the configuration; where a link is given."""
    belief: Literal["measured", "literal"] = "measured"
    """Probability of predictions and hints: measured (calibrated) or literal, as in the configuration; where a link is
    given."""
    link_rate: Annotated[str, tyro.conf.arg(metavar="BYTES")] = ""
    """Time everything, with a link of so many bytes a second (8GB) between the experts and the slots."""
    layer_ms: Annotated[float, Meta(ge=0, le=10**6)] = 0.0
    """Time that compute takes for a layer, on average; 0: as recorded."""
    expert_bytes: Annotated[str, tyro.conf.arg(metavar="BYTES")] = ""
    """Size of an expert (9MB); the folder of a trace has it."""
    message_us: Annotated[float, Meta(ge=0, le=10**9)] = 150.0
    """Time of a message between loader and compute, and of a decision of the loader."""
    count: bool = False
    """Only count although a link is given; it carries so many hinted experts as fit beside a layer's compute time."""
    seed: Seed = 0
    """Seed of emulated hints, and of the choice of held-out sequences."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the results to this file as well."""
    ledger_log: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Instead of a trace: a ledger's event log (ledger.EPOCH.msgpack of a recording), replayed and compared."""

    def run(self) -> int:
        if self.ledger_log is not None:
            outcome = replay_ledger_log(self.ledger_log)
            result_console().print(log_table(outcome))
            return DONE if outcome.same else FAILED
        if self.trace is None:
            raise UsageError("no trace is given", "TRACE", "Give an .npz file or a folder, or --ledger-log FILE")
        self._replay(self.trace)
        return DONE

    def _replay(self, trace: Path) -> None:
        names = policy_names(self.policies)
        with ProgressView() as view:
            view(Progress("replay", "reading the trace", 0, 1))
            source = open_source(trace, self.batch, self.tokens, self.held_out, self.seed)
            experiment = self._experiment(source)
            rows = list(self._rows(experiment, names, view))
        facts = replay_facts(source, experiment, trace.name)
        size = expert_size_bytes(self.expert_bytes, source)
        console = result_console()
        for part in (facts.table(), "", replay_table(rows, source, size), "", facts_table(LEGEND)):
            console.print(part)
        if self.json is not None:
            write_json(self.json, facts, rows, size)

    def _rows(self, experiment: Experiment, names: list[str], view: ProgressView) -> Iterator[ReplayRow]:
        recorded = recorded_row(experiment.source)
        if recorded is not None:
            yield recorded
        runs = [(name, slots) for slots in slot_counts(self.slots, experiment.source.trace) for name in names]
        for done, (name, slots) in enumerate(runs):
            view(Progress("replay", f"{name}, {slots:,} slots", done, len(runs)))
            yield experiment.run(name, slots)

    def _experiment(self, source: ReplaySource) -> Experiment:
        timed = bool(self.link_rate) and not self.count
        if self.predictor != "none" and not timed:
            raise UsageError("predictions need time to be carried out", "predictor", "Add --link-rate, without --count")
        machine, carried = None, math.inf
        if self.link_rate:
            layer_ns = layer_time_ns(self.layer_ms, source)
            size = expert_size_bytes(self.expert_bytes, source)
            machine = make_machine(self.link_rate, layer_ns, size, self.message_us, source)
            carried = machine.link_bytes_per_s * layer_ns / 1e9 / size
        return Experiment(
            source=source,
            sharing=self.sharing,
            hints=hint_source(self.hints, source, self.seed),
            loads_per_layer=carried,
            machine=machine if timed else None,
            timings=recorded_timings(self.layer_ms, source),
            make_predictions=prediction_maker(self.predictor, self.predictor_file, self.forecast_ms, source),
            rank_victims=self.rank_victims,
            uncalibrated=self.belief == "literal",
        )


class ReplayFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of the replayed trace, and quality of the hints."""

    trace: str
    sequences: int
    tokens: int
    steps: int
    layers: int
    experts: int
    top_k: int
    mean_union: float
    """Distinct experts of a layer of a step."""
    sharing: str
    hint_recall: float | None = None
    hint_precision: float | None = None
    """Both as measured, over the unions of whole steps."""

    def table(self) -> Table:
        """Return the facts as a table."""
        shared = "shared by all layers" if self.sharing == "pool" else "as many for each layer"
        facts = {
            "trace": f"{self.trace}: {self.sequences:,} sequences, {self.tokens:,} tokens",
            "experts": f"{self.top_k} of {self.experts} in each of {self.layers} MoE layers; slots {shared}",
            "steps": f"{self.steps:,}; a layer uses {self.mean_union:.1f} experts on average",
        }
        if self.hint_recall is not None and self.hint_precision is not None:
            facts["hints"] = f"recall {self.hint_recall:.3f}, precision {self.hint_precision:.3f}, by step"
        return facts_table(facts)


def replay_facts(source: ReplaySource, experiment: Experiment, where: str) -> ReplayFacts:
    """Return the facts of a replay; `where` names the trace."""
    trace, uses = source.trace, source.uses
    hints = experiment.hints
    quality = hints.measure(uses) if isinstance(hints, EmulatedHints) else None
    return ReplayFacts(
        trace=where,
        sequences=trace.sequences,
        tokens=trace.tokens,
        steps=uses.steps,
        layers=trace.layers,
        experts=trace.expert_count,
        top_k=trace.top_k,
        mean_union=float(source.unions.mean()),
        sharing=experiment.sharing,
        hint_recall=quality.recall if quality else None,
        hint_precision=quality.precision if quality else None,
    )


def replay_table(rows: list[ReplayRow], source: ReplaySource, expert_bytes: int) -> Table:
    """Return a row for each policy. Empty columns are left out; `LEGEND` explains the others."""
    timed, hinted = any(row.seconds is not None for row in rows), any(row.prefetches for row in rows)
    names = ["slots", "found", "loads", "loaded", "gap", "r"]
    names += ["useful", "wasted"] * hinted + ["waits", "ms/step"] * timed
    table = plain_table("policy", *names)
    for row in rows:
        cells = [
            f"{row.slots / source.trace.layers:.4g}",
            f"{100 * row.hit_rate:.1f} %",
            UNKNOWN if row.loads is None else f"{row.loads:,}",
            format_size(row.loads * expert_bytes) if row.loads is not None and expert_bytes else UNKNOWN,
            share_text(_gap(row, rows)),
            f"{row.union_of_slots:.2f}",
        ]
        cells += [f"{row.useful:,}", f"{row.wasted:,}"] * hinted
        cells += _times(row, source.uses.steps) * timed
        table.add_row(row.policy, *cells)
    return table


def _times(row: ReplayRow, steps: int) -> list[str]:
    if row.seconds is None or row.stall_s is None:
        return [UNKNOWN, UNKNOWN]
    return [share_text(row.stall_s / max(row.seconds, 1e-9)), f"{1e3 * row.seconds / steps:.2f}"]


def write_json(file: Path, facts: ReplayFacts, rows: list[ReplayRow], expert_bytes: int) -> None:
    """Write facts and rows as JSON. Raises UsageError if the file cannot be written."""
    listed = []
    for row in rows:
        size = row.loads * expert_bytes if row.loads is not None and expert_bytes else None
        listed.append({**msgspec.to_builtins(row), "gap_to_belady": _gap(row, rows), "loaded_bytes": size})
    try:
        file.write_bytes(msgspec.json.format(msgspec.json.encode({"replayed": facts, "rows": listed})) + b"\n")
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", str(file), "Give another file for --json") from error


def _gap(row: ReplayRow, rows: list[ReplayRow]) -> float | None:
    """Return the share of the row's loads that Belady would have saved with as many slots."""
    best = next((other.loads for other in rows if other.policy == BELADY and other.slots == row.slots), None)
    return None if row.loads is None or best is None else (row.loads - best) / max(row.loads, 1)


def log_table(outcome: LogReplay) -> Table:
    """Return the statistics in the log beside those of the ledger that replayed it."""
    table = plain_table(f"{outcome.events:,} events", "recorded", "replayed")
    for name, value in outcome.replayed.items():
        table.add_row(name, str(outcome.recorded.get(name, UNKNOWN)), str(value))
    table.add_row(f"equal at {outcome.equal_marks:,} of {outcome.marks:,} marks", "", "")
    return table
