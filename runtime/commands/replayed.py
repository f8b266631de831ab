"""What a replay came to, as a table and as JSON."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.table import Table

from ...configs.sizes import format_size
from ...errors import UsageError
from ..monitor.tables import UNKNOWN, facts_table, plain_table, share_text
from ..replay.experiment import BELADY, Experiment, ReplayRow
from ..replay.hints import EmulatedHints
from ..replay.ledger_log import LogReplay
from ..replay.source import ReplaySource

LEGEND = {
    "slots": "for each layer",
    "found": "share of the experts in use that were there when needed",
    "gap": "share of the loads that the best possible choices (belady) would have saved",
    "r": "experts in use ÷ slots",
}


class ReplayFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was replayed."""

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
    """Of the unions of whole steps, as they came out."""

    def table(self) -> Table:
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
    """Columns that say nothing are left out; `LEGEND` explains the others."""
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
    """Raises UsageError if the file cannot be written."""
    listed = []
    for row in rows:
        size = row.loads * expert_bytes if row.loads is not None and expert_bytes else None
        listed.append({**msgspec.to_builtins(row), "gap_to_belady": _gap(row, rows), "loaded_bytes": size})
    try:
        file.write_bytes(msgspec.json.format(msgspec.json.encode({"replayed": facts, "rows": listed})) + b"\n")
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", str(file), "Give another file for --json") from error


def _gap(row: ReplayRow, rows: list[ReplayRow]) -> float | None:
    """Share of the row's loads that Belady would have saved with as many slots."""
    best = next((each.loads for each in rows if each.policy == BELADY and each.slots == row.slots), None)
    return None if row.loads is None or best is None else (row.loads - best) / max(row.loads, 1)


def log_table(outcome: LogReplay) -> Table:
    """The statistics of the log and of the ledger that heard it again."""
    table = plain_table(f"{outcome.events:,} events", "recorded", "replayed")
    for name, value in outcome.replayed.items():
        table.add_row(name, str(outcome.recorded.get(name, UNKNOWN)), str(value))
    table.add_row(f"equal at {outcome.equal_marks:,} of {outcome.marks:,} marks", "", "")
    return table
