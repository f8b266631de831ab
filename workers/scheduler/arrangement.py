"""Which unit decodes next, and which units merge or part on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .facts import ComputeFacts
from .units import Unit


@dataclass(frozen=True, slots=True)
class Decode:
    """Run a step of `unit` after appending `joins` to it."""

    unit: Unit
    joins: list[Unit] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Part:
    """Move these rows of `unit` to a new unit."""

    unit: Unit
    rows: list[int]


def next_decode(units: list[Unit], compute: ComputeFacts, keep: int) -> Decode | Part | None:
    """The best thing to do with the idle units, when `keep` units shall be in flight; None: wait.

    Of units that may be joined, the `keep` largest stay and the others join the smallest of these at its next step.
    Units that cannot be joined take turns.
    """
    choices: list[Decode | Part] = []
    for group in _groups(units, compute):
        choices += _choices_of(group, compute, keep)
    return min(choices, key=lambda choice: choice.unit.last_step, default=None)


def _groups(units: list[Unit], compute: ComputeFacts) -> list[list[Unit]]:
    """Units within a group may be joined: all or none."""
    alive = [unit for unit in units if unit.rows]
    return [alive] if compute.joining and alive else [[unit] for unit in alive]


def _choices_of(group: list[Unit], compute: ComputeFacts, keep: int) -> Iterator[Decode | Part]:
    prefilling = any(unit.prefilling for unit in group)
    if keep == 1 and prefilling and len(group) > 1:
        return  # the new rows join this unit's next step, which is worth the wait: compute is busy with them anyway
    group.sort(key=lambda unit: (-len(unit.rows), unit.number))
    mains, extras = group[:keep], group[keep:]
    if keep == 2 and compute.joining and not extras and not prefilling:
        surplus = _surplus(mains)
        if surplus and mains[0].step is None:
            yield Part(mains[0], list(mains[0].rows)[-surplus:])
            return
    for main in mains:
        if main.step is None:
            yield Decode(main, [extra for extra in extras if extra.step is None] if main is mains[-1] else [])


def _surplus(mains: list[Unit]) -> int:
    """Rows that the larger of two units should give away (to a second unit that may not exist yet)."""
    larger, smaller = len(mains[0].rows), len(mains[1].rows) if len(mains) == 2 else 0
    uneven = larger - smaller
    return uneven // 2 if uneven >= max(2, (larger + smaller) // 3) else 0
