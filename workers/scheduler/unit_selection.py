"""Choice of the unit that decodes next, and of units to merge or split before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .limits import ComputeInfo
from .units import UnitState, can_join


@dataclass(frozen=True, slots=True)
class Decode:
    """Decision to run a step of `unit` after the rows of `joins` joined it."""

    unit: UnitState
    joins: list[UnitState] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SplitUnit:
    """Decision to move these rows of `unit` to a new unit."""

    unit: UnitState
    rows: list[int]


def next_decode(
    units: list[UnitState], compute: ComputeInfo, keep: int, settled: bool = True
) -> Decode | SplitUnit | None:
    """Return the best decision for the idle units, given that `keep` units shall be in flight; None: wait.

    Of units that may be joined, the `keep` largest stay; the others join the smallest of these at its next step. Units
    that cannot be joined take turns. While rows move between units (not `settled`) no unit is split.
    """
    choices: list[Decode | SplitUnit] = []
    for group in _groups(units, compute):
        choices += _choices_of(group, keep, settled and can_join(group, compute))
    return min(choices, key=lambda choice: choice.unit.last_step, default=None)


def _groups(units: list[UnitState], compute: ComputeInfo) -> list[list[UnitState]]:
    """Return groups of units; the units of one group may be joined."""
    alive = [unit for unit in units if unit.rows]
    kinds = [[unit for unit in alive if unit.batch_invariant is invariant] for invariant in (False, True)]
    return [group for kind in kinds if kind for group in ([kind] if can_join(kind, compute) else [[u] for u in kind])]


def _choices_of(group: list[UnitState], keep: int, may_split: bool) -> Iterator[Decode | SplitUnit]:
    prefilling = any(unit.prefilling for unit in group)
    if keep == 1 and prefilling and len(group) > 1:
        return  # wait: the new rows join this unit's next step, and compute is busy with them meanwhile
    group.sort(key=lambda unit: (-len(unit.rows), unit.number))
    mains, extras = group[:keep], group[keep:]
    if keep > 1 and may_split and not extras and not prefilling:
        surplus = _surplus(mains, keep)
        if surplus and mains[0].step is None:
            yield SplitUnit(mains[0], list(mains[0].rows)[-surplus:])
            return
    for main in mains:
        if main.step is None:
            yield Decode(main, [extra for extra in extras if extra.step is None] if main is mains[-1] else [])


def _surplus(mains: list[UnitState], keep: int) -> int:
    """Return how many rows the largest unit should give to a new unit, or to the smallest one."""
    sizes = [len(unit.rows) for unit in mains]
    if len(sizes) < keep:
        return min(sum(sizes) // keep, sizes[0] - 1) or sizes[0] // 2
    uneven = sizes[0] - sizes[-1]
    return uneven // 2 if uneven >= max(2, (sizes[0] + sizes[-1]) // 3) else 0
