"""Replay policies over a recorded trace: hits and loads by slots and by sequences side by side, without a model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from expertflow.runtime.commands.replay import replay_facts
from expertflow.runtime.replay.choices import hint_source, policy_names, slot_counts
from expertflow.runtime.replay.experiment import Experiment
from expertflow.runtime.replay.source import open_source

from ..plots.experiments import draw_replay
from .tables import Cell, markdown

Line = dict[str, Cell]
HINTED = "popularity, hinted"
HINTS = "0.85,0.85"
"""Recall and precision of emulated hints."""
EXPLAINED = f"""\
Counted, without time: the experts of a layer of a step are looked up together, then loaded. Slots are for each layer on
average. Hints are emulated: recall and precision {HINTS}, false ones from the token's likely experts; loads with hints
include prefetches. `belady` and `sch(16)` know the future."""


def replay_all(
    trace: Path, folder: Path, slots: str, batches: Sequence[int], tokens: int, about: dict[str, Any]
) -> list[Path]:
    """Write replay-TRACE.json, .md and .png: counts, nothing of the trace itself. Raises UsageError."""
    lines: list[Line] = []
    facts: list[dict[str, Any]] = []
    for batch in batches:
        source = open_source(trace, batch, tokens)
        for sharing in ("pool", "layer"):
            experiment = Experiment(source=source, sharing=cast(Literal["pool", "layer"], sharing))
            lines += _lines(experiment, "all", slots, batch, "")
        hinted = Experiment(source=source, sharing="pool", hints=hint_source(HINTS, source, 0))
        lines += _lines(hinted, "popularity,lru", slots, batch, ", hinted")
        described = replay_facts(source, hinted, trace.name)
        facts.append(
            {"batch": batch} | {name: _rounded(getattr(described, name)) for name in described.__struct_fields__}
        )
    stem = folder / f"replay-{trace.stem}"
    files = [stem.with_suffix(suffix) for suffix in (".json", ".md", ".png")]
    files[0].write_text(json.dumps(about | {"replayed": facts, "rows": lines}, indent=1) + "\n")
    files[1].write_text(_page(about, facts, lines))
    draw_replay(lines, files[2])
    return files


def _lines(experiment: Experiment, policies: str, slots: str, batch: int, suffix: str) -> Iterable[Line]:
    names = policy_names(policies) if not suffix else policies.split(",")
    layers = experiment.source.trace.layers
    for count in slot_counts(slots, experiment.source.trace):
        for name in names:
            row = experiment.run(name, count)
            yield {
                "policy": name + suffix,
                "sharing": experiment.sharing,
                "slots": count / layers,
                "batch": batch,
                "hit_ratio": round(row.hit_rate, 4),
                "loads": row.loads,
                "useful": row.useful,
                "wasted": row.wasted,
                "union_of_slots": round(row.union_of_slots, 3),
            }


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def _page(about: dict[str, Any], facts: list[dict[str, Any]], lines: list[Line]) -> str:
    head = list(lines[0])
    parts = [
        f"# Policies replayed on {facts[0]['trace']}",
        f"```\n{about['command']}\n```",
        ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
        EXPLAINED,
        markdown(list(facts[0]), [list(each.values()) for each in facts]),
        markdown(head, [list(line.values()) for line in lines]),
    ]
    return "\n\n".join(parts) + "\n"
