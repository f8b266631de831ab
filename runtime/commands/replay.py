"""`expertflow replay`: caches over recorded routing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ...configs.sizes import parse_size
from ...errors import UsageError
from ...ipc.messages import Progress
from ...workers.loader.policies import POLICIES
from ..progress import ProgressView
from ..replay.advice import ForecastPlans, Planning, RecordedHints, RecordedPlans
from ..replay.experiment import BOUNDS, Experiment, HintSource, Row, no_plans, recorded_row
from ..replay.hints import EmulatedHints, Quality
from ..replay.ledger_log import replay_ledger_log
from ..replay.machine import Machine
from ..replay.source import Source, open_source
from ..replay.timings import RecordedTimings
from ..tables import result_console
from .base import DONE, FAILED, Command
from .replayed import log_table, replay_facts, replay_table, write_json

EXPERTS_SHARE = 0.7
"""Of the time of a layer that its experts take; the rest is attention and the router."""


@dataclass(frozen=True, kw_only=True)
class Replay(Command):
    """Run eviction policies over a recorded trace: what would have been found, loaded and waited for.

    By default only counts: the experts of a layer of a step are looked up together, then loaded. With --link-rate the
    loader's own decisions run under a virtual clock, so that transfers take time and hide behind compute.
    """

    trace: tyro.conf.Positional[Path | None] = None
    """An .npz file, or a folder that `expertflow trace` or an engine with `trace` wrote."""
    policies: str = "all"
    """Names separated by commas: popularity,lru,… The bounds belady and sch(16), which know the future, are added."""
    slots: str = "25%"
    """Expert slots, several values separated by commas: so many for each layer on average (16), or a share (25%)."""
    sharing: Literal["pool", "layer"] = "pool"
    """Whether all layers share the slots, or each has as many as any other."""
    batch: int = 0
    """Sequences side by side; 0: the steps as they were recorded, or 1."""
    tokens: int = 20_000
    """Replay only so many tokens of the trace; 0: all. Recorded steps are always replayed whole."""
    hints: Annotated[str, tyro.conf.arg(metavar="RECALL,PRECISION|recorded")] = ""
    """Hints for each next layer: emulated ones (0.85,0.85), false ones drawn from the token's likely experts; or the
    recorded ones."""
    predictor: Literal["none", "table", "recorded"] = "none"
    """Plans for whole steps, which need a link rate: from a token table that learns meanwhile, or the recorded."""
    link_rate: Annotated[str, tyro.conf.arg(metavar="BYTES")] = ""
    """Time everything, with a link of so many bytes a second (8GB) between the experts and the slots."""
    layer_ms: float = 0.0
    """Time that compute takes for a layer, on average; 0: as recorded."""
    expert_bytes: Annotated[str, tyro.conf.arg(metavar="BYTES")] = ""
    """Size of an expert (9MB); not needed for a folder, which says it."""
    message_us: float = 100.0
    """Time of a message between loader and compute, and of a decision of the loader."""
    count: bool = False
    """Only count although a link is given; it carries so many hinted experts as fit beside a layer's compute time."""
    seed: int = 0
    """Of emulated hints."""
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
        names = self._names()
        with ProgressView() as view:
            view(Progress("replay", "reading the trace", 0, 1))
            source = open_source(self.trace, self.batch, self.tokens)
            experiment = self._experiment(source)
            rows = list(self._rows(experiment, names, view))
        self._show(source, experiment, rows, self.trace)
        return DONE

    def _show(self, source: Source, experiment: Experiment, rows: list[Row], trace: Path) -> None:
        facts = replay_facts(source, experiment, trace.name)
        size = self._expert_bytes(source, needed=False)
        console = result_console()
        console.print(facts.table())
        console.print()
        console.print(replay_table(rows, source, size))
        if self.json is not None:
            write_json(self.json, facts, rows, size)

    def _rows(self, experiment: Experiment, names: list[str], view: ProgressView) -> Iterator[Row]:
        recorded = recorded_row(experiment.source)
        if recorded is not None:
            yield recorded
        runs = [(name, slots) for slots in self._slot_counts(experiment.source) for name in names]
        for done, (name, slots) in enumerate(runs):
            view(Progress("replay", f"{name}, {slots:,} slots", done, len(runs)))
            yield experiment.run(name, slots)

    # What the options mean

    def _names(self) -> list[str]:
        names = list(POLICIES) if self.policies == "all" else [name.strip() for name in self.policies.split(",")]
        for name in names:
            if name not in POLICIES and name not in BOUNDS:
                raise UsageError(f"no policy '{name}'", "policies", f"Choose from: all, {', '.join(POLICIES)}")
        return [*names, *(bound for bound in BOUNDS if bound not in names)]

    def _slot_counts(self, source: Source) -> list[int]:
        """In all layers together."""
        experts, layers = source.trace.expert_count, source.trace.layers
        counts = []
        for text in self.slots.split(","):
            size = parse_size(text, "slots")
            each = size.share * experts if size.share is not None else float(size.of(0))
            if not 1 <= each * layers <= experts * layers:
                what = f"'{text.strip()}' is not from 1 slot in all to the {experts} experts of a layer"
                raise UsageError(what, "slots", "Write for example 8,16,25%")
            counts.append(round(each * layers))
        return counts

    def _experiment(self, source: Source) -> Experiment:
        machine = self._machine(source) if self.link_rate else None
        carried = math.inf
        if machine is not None and self.count:
            carried = machine.link_bytes_per_s * self._layer_ns(source) / 1e9 / machine.expert_bytes
        return Experiment(
            source=source,
            sharing=self.sharing,
            hints=self._hints(source),
            loads_per_layer=carried,
            machine=None if self.count else machine,
            timings=self._recorded_timings(source),
            make_plans=self._plan_maker(source),
        )

    def _machine(self, source: Source) -> Machine:
        layer_ns = self._layer_ns(source)
        message_ns = round(self.message_us * 1e3)
        return Machine(
            expert_bytes=self._expert_bytes(source),
            link_bytes_per_s=parse_size(self.link_rate, "link_rate").of(0),
            layer_ns=round(layer_ns * (1 - EXPERTS_SHARE)),
            expert_ns=round(layer_ns * EXPERTS_SHARE / source.unions.mean()),
            message_ns=message_ns,
            decide_ns=message_ns,
        )

    def _layer_ns(self, source: Source) -> float:
        if self.layer_ms > 0:
            return self.layer_ms * 1e6
        if source.log is None or source.places is None:
            what = "how long compute takes was not recorded"
            raise UsageError(what, "layer_ms", "Give the milliseconds of a layer")
        return float(source.log.compute_ns[source.places].sum()) / len(source.places) / source.trace.layers

    def _recorded_timings(self, source: Source) -> RecordedTimings | None:
        if self.layer_ms > 0 or source.log is None or source.places is None:
            return None
        return RecordedTimings(source.log, source.places, source.unions, EXPERTS_SHARE)

    def _expert_bytes(self, source: Source, needed: bool = True) -> int:
        if self.expert_bytes:
            return parse_size(self.expert_bytes, "expert_bytes").of(0)
        if source.log is None and needed:
            raise UsageError("the size of an expert was not recorded", "expert_bytes", "Give it, for example 9MB")
        return 0 if source.log is None else source.log.header.expert_bytes

    def _hints(self, source: Source) -> HintSource | None:
        if not self.hints:
            return None
        if self.hints == "recorded":
            if source.log is None or source.places is None:
                raise UsageError("the trace has no hints", "hints", "Give RECALL,PRECISION such as 0.85,0.85")
            return RecordedHints(source.log, source.places)
        try:
            recall, precision = (float(part) for part in self.hints.split(","))
        except ValueError as error:
            raise UsageError(f"cannot read '{self.hints}'", "hints", "Write for example 0.85,0.85") from error
        return EmulatedHints(source.trace, source.steps, Quality(recall=recall, precision=precision), seed=self.seed)

    def _plan_maker(self, source: Source) -> Callable[[], Planning | None]:
        if self.predictor == "none":
            return no_plans
        if not self.link_rate or self.count:
            raise UsageError("plans need time to be carried out", "predictor", "Add --link-rate, without --count")
        if self.predictor == "table":
            return lambda: _token_table(source)
        if source.log is None or source.places is None:
            raise UsageError("the trace has no plans", "predictor", "Use --predictor table")
        log, places = source.log, source.places
        return lambda: RecordedPlans(log, places)


def _token_table(source: Source) -> Planning:
    from ...workers.predictor.token_table import TokenTable

    trace = source.trace
    return ForecastPlans(source.program, TokenTable(trace.layers, trace.expert_count, trace.top_k))
