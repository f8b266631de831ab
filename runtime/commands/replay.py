"""`expertflow replay`: caches over recorded routing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from msgspec import Meta

from ...configs.ranges import Seed
from ...configs.schema import TraceablePredictor
from ...errors import UsageError
from ...ipc.messages import Progress
from ..command_line.base import DONE, FAILED, Command
from ..monitor.progress import ProgressView
from ..monitor.tables import facts_table, result_console
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
from ..replay.experiment import Experiment, ReplayRow, recorded_row
from ..replay.ledger_log import replay_ledger_log
from ..replay.source import ReplaySource, open_source
from .replayed import LEGEND, log_table, replay_facts, replay_table, write_json


@dataclass(frozen=True, kw_only=True)
class Replay(Command):
    """Run eviction policies over a recorded trace: what would have been found, loaded and waited for.

    By default only counts: the experts of a layer of a step are looked up together, then loaded. With --link-rate the
    loader's own decisions run under a virtual clock, so that transfers take time and hide behind compute.
    """

    trace: tyro.conf.Positional[Path | None] = None
    """An .npz file, or a folder that `expertflow trace` wrote, or an engine while serving."""
    policies: str = "all"
    """Names separated by commas: popularity,lru,… The bounds belady and sch(16), which know the future, are added."""
    slots: str = "25%"
    """Expert slots, several values separated by commas: so many for each layer on average (16), or a share (25%)."""
    sharing: Literal["pool", "layer"] = "pool"
    """Whether all layers share the slots, or each has as many as any other."""
    batch: Annotated[int, Meta(ge=0)] = 0
    """Sequences side by side; 0: the steps as they were recorded, or 1."""
    tokens: Annotated[int, Meta(ge=0)] = 20_000
    """Replay only so many tokens of the trace; 0: all. Recorded steps are always replayed whole."""
    held_out: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Replay only this share of the sequences: those that `expertflow train` with this share and seed judges by."""
    hints: Annotated[str, tyro.conf.arg(metavar="RECALL,PRECISION|recorded")] = ""
    """Hints for each next layer: emulated ones (0.85,0.85), false ones drawn from the token's likely experts; or the
    recorded ones."""
    predictor: Literal["none", TraceablePredictor, "recorded"] = "none"
    """Plans for whole steps, where a link is given: from this predictor, or the recorded ones."""
    predictor_file: str = ""
    """What `expertflow train` wrote, for the predictors that are trained."""
    forecast_ms: Annotated[float, Meta(ge=0, le=10**6)] = 2.0
    """Time of a forecast."""
    rank_victims: Literal["auto", "always", "never"] = "auto"
    """Whether forecasts say which expert goes first, as in the configuration; where a link is given."""
    belief: Literal["measured", "literal"] = "measured"
    """How far forecasts and hints are believed, as in the configuration; where a link is given."""
    link_rate: Annotated[str, tyro.conf.arg(metavar="BYTES")] = ""
    """Time everything, with a link of so many bytes a second (8GB) between the experts and the slots."""
    layer_ms: Annotated[float, Meta(ge=0, le=10**6)] = 0.0
    """Time that compute takes for a layer, on average; 0: as recorded."""
    expert_bytes: Annotated[str, tyro.conf.arg(metavar="BYTES")] = ""
    """Size of an expert (9MB); not needed for a folder, which says it."""
    message_us: Annotated[float, Meta(ge=0, le=10**9)] = 150.0
    """Time of a message between loader and compute, and of a decision of the loader."""
    count: bool = False
    """Only count although a link is given; it carries so many hinted experts as fit beside a layer's compute time."""
    seed: Seed = 0
    """Of emulated hints, and of the choice of sequences that are held out."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the results to this file as well."""
    ledger_log: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Instead of a trace: a ledger's event log (ledger.EPOCH.msgpack of a recording), asked again and compared."""

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
            raise UsageError("plans need time to be carried out", "predictor", "Add --link-rate, without --count")
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
