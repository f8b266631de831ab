"""The parts of `make bench`, in the order in which they run: what matters most comes first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import exact, readers
from .verdict import Seen, Verdict

RESULTS = Path(__file__).parents[2] / "docs" / "results"
HERE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Part:
    """A script with a `main` that prints tables and writes what it measured to `file`."""

    name: str
    targets: tuple[str, ...]
    command: tuple[str, ...]
    """After `python`."""
    minutes: float
    file: str
    """In docs/results, written by the command's --out."""
    read: Callable[[Any], Sequence[Verdict | Seen]]
    """Its verdicts."""
    quick: tuple[str, ...] = ()
    """More options for a first look."""
    quick_minutes: float = 2.0

    def arguments(self, quick: bool) -> list[str]:
        return [*self.command, *(self.quick if quick else ()), "--out", str(RESULTS / self.file)]

    def minutes_of(self, quick: bool) -> float:
        return self.quick_minutes if quick else self.minutes


def module(name: str, *options: str) -> tuple[str, ...]:
    """A part that is a module of this folder."""
    return ("-m", f"expertflow.benchmarks.{name}", *options)


def script(name: str, *options: str) -> tuple[str, ...]:
    """A part that is a script of this folder."""
    return (str(HERE / name), *options)


PARTS = (
    Part("under limit", ("S4",), module("under_limit", "--steps", "24", "--patience", "12", "--minutes", "12"), 14,
         "under-limit.json", readers.under_limit,
         ("--limits", "1.65GB", "--repeats", "1", "--steps", "8", "--patience", "8"), 5),
    Part("resident", ("S1", "S2", "S6"), script("resident.py", "--model", "r", "--rounds", "2"), 8, "resident-r.json",
         readers.resident, ("--rounds", "1", "--steps", "8"), 3),
    Part("disk rate", ("S7",), script("disk_rate.py"), 3, "disk-rate.json", readers.disk_rate, ("--rounds", "3"), 1),
    Part("disk steps", ("S3",), script("disk_steps.py", "--contenders", "auto"), 8, "disk-steps.json",
         readers.disk_steps, ("--blocks", "1"), 4),
    Part("link", ("S5",), script("link.py", "--blocks", "2"), 5, "link.json", readers.link, ("--blocks", "1"), 3),
    Part("start-up", ("S8",), script("start_up.py"), 1, "start-up.json", readers.start_up, ("--repeats", "1"), 1),
    Part("growth", ("S9",), script("growth.py"), 5, "growth.json", readers.growth, ("--repeats", "1"), 2),
    Part("residency", ("S10",), module("residency", "--steps", "16", "--minutes", "5"), 6,
         "residency.json", exact.residency, ("--repeats", "1", "--batches", "1", "--steps", "8"), 4),
    Part("matrix", ("S10",), module("matrix", "--steps", "16", "--cold-steps", "6", "--minutes", "8"), 9,
         "matrix.json", exact.matrix, ("--repeats", "1", "--batches", "1", "--steps", "8"), 2),
)  # fmt: skip
