"""Cells of the study: a system at a budget, a batch size and a source of experts, over the whole set or a part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["exact", "whole", "control", "speed"]
"""exact: results that do not depend on the batch, so that bits can be compared, for a part of the questions."""
KINDS: tuple[Kind, ...] = ("exact", "whole", "control", "speed")
Source = Literal["disk", "link"]
Option = str | int | bool

BUDGETS = ("12.5%", "25%", "50%", "100%")
BATCHES = (1, 8, 16)
WHOLE_BATCH = 16
TELLING_BUDGET, TELLING_BATCH = "25%", 8
CONTROLS = ("skip", "substitute")


@dataclass(frozen=True)
class System:
    """A preset and what it changes."""

    name: str
    preset: str
    what: str
    options: dict[str, Option] = field(default_factory=dict)


SYSTEMS = (
    System("expertflow", "cpu-disk", "predicts, prefetches, groups"),
    System("on-demand", "on-demand", "LRU over all layers, a miss is loaded"),
    System("cache-moe", "cache-moe", "LRU in each layer, a miss is loaded"),
    System("se-moe", "se-moe", "a ring of layers, all experts of the coming layers are loaded"),
    System("static", "on-demand", "the experts used most at first stay, a miss is loaded", {"policy": "static"}),
)
BY_NAME = {system.name: system for system in SYSTEMS}


@dataclass(frozen=True)
class Cell:
    """One row of the results; its name is that of its file."""

    kind: Kind
    model: str
    system: str
    """Of SYSTEMS, or a policy of CONTROLS."""
    budget: str
    batch: int
    source: Source
    seed: int = 0

    @property
    def name(self) -> str:
        """Return a name without blanks or slashes."""
        budget = self.budget.rstrip("%")
        return f"{self.kind}-{self.model}-{self.system}-{budget}-b{self.batch}-{self.source}-s{self.seed}"


def exact_cells(models: list[str]) -> Iterator[Cell]:
    """Yield the cells whose log-probabilities are compared bit by bit: all experts resident, then fewer."""
    for budget in ("100%", TELLING_BUDGET, "12.5%", "50%"):
        for model in models:
            yield Cell("exact", model, "expertflow", budget, WHOLE_BATCH, "disk")


def quick_cells(model: str) -> list[Cell]:
    """Return an engine with a quarter of the experts, transformers with all of them, and the control with few."""
    engine = Cell("exact", model, "expertflow", TELLING_BUDGET, TELLING_BATCH, "disk")
    controls = (Cell("control", model, CONTROLS[0], budget, TELLING_BATCH, "disk") for budget in ("100%", "12.5%"))
    return [engine, *controls]


def whole_cells(models: list[str]) -> Iterator[Cell]:
    """Yield the cells that ask every question of the model as it was trained: all experts resident, then a quarter."""
    for budget in ("100%", TELLING_BUDGET):
        for model in models:
            yield Cell("whole", model, "expertflow", budget, WHOLE_BATCH, "disk")


def control_cells(models: list[str]) -> Iterator[Cell]:
    """Yield the cells of the negative control: missing experts are skipped, or resident ones take their place."""
    for budget in (TELLING_BUDGET, "12.5%", "50%", "100%"):
        for model in models:
            for policy in CONTROLS if budget != "100%" else CONTROLS[:1]:
                yield Cell("control", model, policy, budget, WHOLE_BATCH, "disk")


def speed_cells(models: list[str], seeds: int) -> list[Cell]:
    """Return the cells of all systems, the telling ones first: a quarter of the experts, eight sequences."""
    cells = [
        Cell("speed", model, system.name, budget, batch, source, seed)
        for model in models
        for seed in range(seeds)
        for source in ("link", "disk")
        for budget in BUDGETS
        for batch in BATCHES
        for system in SYSTEMS
    ]
    return sorted(cells, key=lambda cell: (_remoteness(cell), cell.seed))


def _remoteness(cell: Cell) -> int:
    """Count by how many settings a cell differs from the telling one; the sort keeps models in their order."""
    return (cell.budget != TELLING_BUDGET) + (cell.batch != TELLING_BATCH)
