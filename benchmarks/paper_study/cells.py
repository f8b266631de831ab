"""The cells of the study, in the order in which they tell most: the base case, then one axis at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .systems import MAIN, NAMES, SYSTEMS

MODELS = ("widened", "r")
SLOTS = ("12.5%", "25%", "50%", "75%")
BATCHES = (1, 8, 16, 32)
LINKS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Rates of the link, as shares of what on demand needs to transfer in the time in which it computes."""


class Cell(NamedTuple):
    """One system, and the machine and the work that it gets."""

    system: str
    model: str = "widened"
    slots: str = "25%"
    batch: int = 8
    link: float = 0.5

    @property
    def name(self) -> str:
        """Return the cell in words that a file may be called."""
        words = [self.model, self.slots.rstrip("%"), str(self.batch), f"{self.link:g}", self.system]
        return "_".join(words).replace(" ", "-").replace(",", "")

    @property
    def setting(self) -> tuple[str, str, int, float]:
        """Return what the cell has in common with those that it is compared with."""
        return self.model, self.slots, self.batch, self.link


BASE = Cell("")


class Choice(NamedTuple):
    """Values that a run is restricted to; an empty list restricts nothing."""

    systems: Sequence[str] = ()
    models: Sequence[str] = ()
    slots: Sequence[str] = ()
    batches: Sequence[int] = ()
    links: Sequence[float] = ()

    def allows(self, cell: Cell) -> bool:
        """Return whether every value of the cell is one of those chosen."""
        chosen = (self.systems, self.models, self.slots, self.batches, self.links)
        return all(not allowed or value in allowed for allowed, value in zip(chosen, cell, strict=True))


def all_cells() -> list[Cell]:
    """Return every cell once, those that tell most first."""
    return list(dict.fromkeys(itertools.chain(_telling(), _sweeps(), _rest())))


def _telling() -> Iterator[Cell]:
    """Yield the main systems in the base case and at twice its batch, then every other system in the base case."""
    for batch in (BASE.batch, 2 * BASE.batch):
        yield from (BASE._replace(system=system, batch=batch) for system in MAIN)
    first = [system.name for system in sorted(SYSTEMS, key=lambda system: system.group == "ablation")]
    yield from (BASE._replace(system=system) for system in first)


def _sweeps() -> Iterator[Cell]:
    """Yield the main systems along one axis at a time."""
    axes: dict[str, Sequence[object]] = {"link": LINKS, "slots": SLOTS, "batch": BATCHES, "model": MODELS}
    for axis, values in axes.items():
        for value in values:
            yield from (BASE._replace(system=system, **{axis: value}) for system in MAIN)


def _rest() -> Iterator[Cell]:
    for model, link, slots, batch in itertools.product(MODELS, LINKS, SLOTS, BATCHES):
        yield from (Cell(system, model, slots, batch, link) for system in NAMES)
