"""Units as the scheduler knows them: rows that compute holds, KV memory they may grow to, and which runs next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .limits import ComputeInfo
from .requests import RequestState


@dataclass(slots=True, eq=False)
class UnitState:
    """Rows over one padded KV cache. `leaving` rows have ended, but compute holds them until a message drops them."""

    number: int
    rows: dict[int, RequestState]
    leaving: dict[int, RequestState] = field(default_factory=dict)
    step: int | None = None
    """Number of the unit's step in flight; None: the unit is idle."""
    last_step: int = 0
    prefilling: bool = False
    """Its step in flight is a prefill or a chunk of one."""
    filled: int = 0
    fill_to: int = 0
    """Positions of its only row that are computed and that its prefill computes, if it runs in chunks; else 0."""
    chunk: int = 0
    target: UnitState | None = None
    """Unit that these rows join at its next step, while they move from one unit to another."""
    size: int = 0
    ceiling: int = 0
    """Positions to which the unit may grow if no row can leave it; `size` is its number of rows at the prefill."""
    batch_invariant: bool = False
    """Every row has a cache of its own: none is padded, and all can join and leave, whatever the model."""

    @classmethod
    def of(cls, number: int, requests: list[RequestState]) -> UnitState:
        """Return a new unit of these requests' rows."""
        rows = {request.number: request for request in requests}
        invariant = any(request.batch_invariant for request in requests)
        return cls(number, rows, size=len(rows), ceiling=_ceiling(requests), batch_invariant=invariant)

    @property
    def filling(self) -> bool:
        """Tell whether another chunk of its row's prefill is to be sent."""
        return bool(self.rows) and self.filled < self.fill_to

    @property
    def migrating(self) -> bool:
        """Tell whether the rows will join a unit that still has rows."""
        return self.target is not None and bool(self.target.rows)

    def leave(self, request: RequestState) -> None:
        """Mark the row of an ended request as one that leaves."""
        if self.rows.pop(request.number, None) is not None:
            self.leaving[request.number] = request

    def all_rows(self) -> list[RequestState]:
        """Return all rows for which compute may hold memory, those that leave included."""
        return [*self.rows.values(), *self.leaving.values()]


def is_chunked(request: RequestState, chunk: int, cached: int) -> bool:
    """Return whether the prefill of a request takes several steps.

    `chunk`: most positions of one, 0: all; `cached`: positions that are not computed.
    """
    return 0 < chunk < request.prefill_length - cached


def can_join(units: Iterable[UnitState], compute: ComputeInfo) -> bool:
    """Return whether rows of all these units may share one unit (batch-invariant rows: with each other alone)."""
    kinds = {unit.batch_invariant for unit in units}
    return kinds == {True} or (len(kinds) < 2 and compute.joining)


def reserved_bytes(units: list[UnitState], compute: ComputeInfo, more: Iterable[RequestState] = ()) -> int:
    """Return the KV bytes to which `units`, and a new unit of the requests `more`, may grow.

    Rows are padded to the longest of their unit, batch-invariant ones not at all. Units that may be joined already
    count as one unit. So joining never needs a byte that was not reserved when the rows were admitted.
    """
    padded, newcomers = [unit for unit in units if not unit.batch_invariant], list(more)
    single = [request for unit in units if unit.batch_invariant for request in unit.all_rows()]
    if any(request.batch_invariant for request in newcomers):
        single, newcomers = single + newcomers, []
    single_bytes = sum(_padded_bytes(1, request.positions, compute) for request in single)
    return single_bytes + _reserved_padded_bytes(padded, compute, newcomers)


def _reserved_padded_bytes(units: list[UnitState], compute: ComputeInfo, newcomers: list[RequestState]) -> int:
    """Return the KV bytes to which units of padded rows may grow, with a new unit of `newcomers`."""
    if not compute.moving:
        sizes = [(unit.size, unit.ceiling) for unit in units] + [(len(newcomers), _ceiling(newcomers))]
        return sum(_padded_bytes(rows, positions, compute) for rows, positions in sizes)
    groups = [unit.all_rows() for unit in units] + [newcomers]
    if compute.joining:
        groups = [[request for group in groups for request in group]]
    return sum(_padded_bytes(len(group), _longest(group), compute) for group in groups)


def _padded_bytes(rows: int, positions: int, compute: ComputeInfo) -> int:
    return rows * (positions * compute.kv_bytes_per_position + compute.kv_bytes_per_row)


def _longest(requests: list[RequestState]) -> int:
    return max((request.positions for request in requests), default=0)


def _ceiling(requests: list[RequestState]) -> int:
    """Return the longest prefill plus the most tokens that may follow, whichever rows they belong to."""
    longest = max((request.length for request in requests), default=0)
    return longest + max((request.positions - request.length for request in requests), default=0)


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
