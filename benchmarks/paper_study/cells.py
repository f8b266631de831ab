"""The cells of the study, and the runs that measure them side by side, in the order in which they tell most."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .systems import EXPERTFLOW, GROUPS

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


class Run(NamedTuple):
    """Cells of one setting, ExpertFlow first, whose engines live side by side and take their blocks in turn.

    A machine shared with others changes its speed from minute to minute, so only cells of the same run are compared.
    """

    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """Return the run in words that a file may be called: the setting, and the first baseline."""
        return self.cells[1].name

    def without(self, systems: Sequence[str]) -> Run:
        """Return the run without the cells of some systems."""
        return Run(tuple(cell for cell in self.cells if cell.system not in systems))


class Choice(NamedTuple):
    """Values that the runs are restricted to; an empty list restricts nothing."""

    systems: Sequence[str] = ()
    models: Sequence[str] = ()
    slots: Sequence[str] = ()
    batches: Sequence[int] = ()
    links: Sequence[float] = ()

    def allows(self, run: Run) -> bool:
        """Return whether every value of one of the run's baselines is one of those chosen."""
        return any(self._allows(cell) for cell in run.cells[1:])

    def _allows(self, cell: Cell) -> bool:
        return all(not allowed or value in allowed for allowed, value in zip(self, cell, strict=True))


def all_runs() -> list[Run]:
    """Return every run once, those that tell most first."""
    return list(dict.fromkeys(itertools.chain(_telling(), _sweeps(), _rest())))


def _telling() -> Iterator[Run]:
    """Yield the main systems in the base case and at twice its batch, then every other system in the base case."""
    for batch in (BASE.batch, 2 * BASE.batch):
        yield from _runs(BASE._replace(batch=batch), GROUPS[:2])
    yield from _runs(BASE, GROUPS)


def _sweeps() -> Iterator[Run]:
    """Yield the main systems along one axis at a time."""
    axes: dict[str, Sequence[object]] = {"link": LINKS, "slots": SLOTS, "batch": BATCHES, "model": MODELS}
    for group in GROUPS[:2]:
        for axis, values in axes.items():
            for value in values:
                yield from _runs(BASE._replace(**{axis: value}), [group])


def _rest() -> Iterator[Run]:
    for model, link, slots, batch in itertools.product(MODELS, LINKS, SLOTS, BATCHES):
        yield from _runs(Cell("", model, slots, batch, link), GROUPS)


def _runs(setting: Cell, groups: Sequence[Sequence[str]]) -> Iterator[Run]:
    """Yield a run a group: ExpertFlow and the systems of the group."""
    for group in groups:
        yield Run(tuple(setting._replace(system=system) for system in (EXPERTFLOW, *group)))
