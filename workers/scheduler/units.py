"""Units: the sets of rows that compute holds, as the scheduler knows them, and the KV memory they may grow to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .limits import ComputeInfo
from .requests import RequestState


@dataclass(slots=True, eq=False)
class UnitState:
    """Rows over one padded cache. `leaving` rows have ended, but compute holds them until it is told to drop them."""

    number: int
    rows: dict[int, RequestState]
    leaving: dict[int, RequestState] = field(default_factory=dict)
    step: int | None = None
    """Number of its step in flight."""
    last_step: int = 0
    prefilling: bool = False
    bound_for: UnitState | None = None
    """The unit that these rows will join at its next step: they are on their way from one unit to another."""
    size: int = 0
    ceiling: int = 0
    """Rows at its prefill, and the positions it may grow to when no row can be taken out of it."""

    @classmethod
    def of(cls, number: int, requests: list[RequestState]) -> UnitState:
        rows = {request.number: request for request in requests}
        return cls(number, rows, size=len(rows), ceiling=_ceiling(requests))

    @property
    def underway(self) -> bool:
        """Whether its rows will join a unit that still has rows."""
        return self.bound_for is not None and bool(self.bound_for.rows)

    def leave(self, request: RequestState) -> None:
        if self.rows.pop(request.number, None) is not None:
            self.leaving[request.number] = request

    def held(self) -> list[RequestState]:
        """Everything compute may hold memory for."""
        return [*self.rows.values(), *self.leaving.values()]


def reserved_bytes(units: Iterable[UnitState], compute: ComputeInfo, more: Iterable[RequestState] = ()) -> int:
    """KV bytes that `units`, and a new one of the requests `more`, may come to hold.

    Rows are padded to the longest of their unit. Units that may be joined count as one unit already, so that joining
    never needs a byte that was not reserved when the rows came in.
    """
    newcomers = list(more)
    if not compute.moving:
        sizes = [(unit.size, unit.ceiling) for unit in units] + [(len(newcomers), _ceiling(newcomers))]
        return sum(_padded_bytes(rows, positions, compute) for rows, positions in sizes)
    groups = [unit.held() for unit in units] + [newcomers]
    if compute.joining:
        groups = [[request for group in groups for request in group]]
    return sum(_padded_bytes(len(group), _longest(group), compute) for group in groups)


def _padded_bytes(rows: int, positions: int, compute: ComputeInfo) -> int:
    return rows * (positions * compute.kv_bytes_per_position + compute.kv_bytes_per_row)


def _longest(requests: list[RequestState]) -> int:
    return max((request.positions for request in requests), default=0)


def _ceiling(requests: list[RequestState]) -> int:
    """The longest prefill and the most tokens that may follow, whichever rows they belong to."""
    longest = max((request.length for request in requests), default=0)
    return longest + max((request.positions - request.length for request in requests), default=0)
