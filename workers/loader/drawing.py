"""The loader's spans on a timeline: transfers and copies with their causes, and the ledger's notes as moments.

`runtime/waits/` reads them: names and details of spans are an interface between the two.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Protocol

from ...ipc.messages import Cause, Copy
from .explanations import Evicted, Explanation, MissExplained, PrefetchUnused
from .transfer.transfers import Transfer

Detail = dict[str, int | str]

FIRST_COPY_LANE = 64
NOTES_LANE = 128


class AddSpan(Protocol):
    """Signature of `Stage.add_span`. Times are of the monotonic clock."""

    def __call__(self, name: str, start_ns: int, end_ns: int, lane: int, detail: Detail) -> None: ...


class Drawing:
    """Spans of one start of the loader. `into` names what transfers fill: a "slot", or a "place" of the store.

    `is_on` says whether spans are wanted now; while they are not, the ledger takes no notes.
    """

    def __init__(
        self, add_span: AddSpan, clock_ns: Callable[[], int], into: str, is_on: Callable[[], bool] = lambda: True
    ) -> None:
        self._add_span, self._clock_ns, self._into = add_span, clock_ns, into
        self.is_on = is_on
        self._lane_ends_ns: dict[int, int] = {}
        self._copies: dict[int, tuple[int, Copy]] = {}
        """Number of a copy -> the time at which it was sent, and the copy."""

    def draw_transfer(self, transfer: Transfer) -> None:
        """Draw a transfer that has ended."""
        detail = self._fill(transfer.layer, transfer.expert, transfer.cause)
        detail |= {self._into: transfer.slot, "queued_us": (transfer.started_ns - transfer.ordered_ns) // 1000}
        self._draw("load", transfer.started_ns, transfer.ended_ns, 0, detail)

    def on_copy_sent(self, copy: Copy) -> None:
        """Remember the time at which this copy was sent to compute."""
        self._copies[copy.number] = (self._clock_ns(), copy)

    def on_copies_done(self, numbers: Iterable[int]) -> None:
        """Draw these copies, from sending them to the report of their end. Unknown numbers are ignored."""
        for started_ns, copy in [self._copies.pop(number) for number in numbers if number in self._copies]:
            detail = self._fill(copy.layer, copy.expert, copy.cause) | {"slot": copy.slot}
            self._draw("copy", started_ns, self._clock_ns(), FIRST_COPY_LANE, detail)

    def on_compute_joined(self) -> None:
        """Forget copies that were sent to a dead compute process."""
        self._copies.clear()

    def draw_notes(self, explanations: list[Explanation]) -> None:
        """Draw the ledger's notes as moments."""
        now_ns = self._clock_ns()
        for explanation in explanations:
            name, detail = _note(explanation)
            self._add_span(name, now_ns, now_ns, NOTES_LANE, detail)

    def _fill(self, layer: int, expert: int, cause: Cause) -> Detail:
        return {"layer": layer, "expert": expert, "cause": cause.kind, "step": cause.step}

    def _draw(self, name: str, start_ns: int, end_ns: int, first_lane: int, detail: Detail) -> None:
        """Draw a span in the first lane that is free, so that spans of a lane never overlap."""
        lanes = itertools.count(first_lane)
        lane = next(lane for lane in lanes if self._lane_ends_ns.get(lane, 0) <= start_ns)
        self._lane_ends_ns[lane] = end_ns
        self._add_span(name, start_ns, end_ns, lane, detail)


def _note(note: Explanation) -> tuple[str, Detail]:
    match note:
        case MissExplained():
            return "miss", {
                "step": note.step,
                "layer": note.layer,
                "expert": note.expert,
                "reason": note.reason.value,
                "chance_percent": round(100 * note.chance) if note.chance >= 0 else -1,
                "wanted_percent": round(100 * note.wanted),
                "under_way": note.cause.kind,
                "slots": note.slots,
            }
        case Evicted():
            cause = {"cause": note.cause.kind, "for_step": note.cause.step, "for_layer": note.cause.layer}
            return "evict", {"slot": note.slot, "layer": note.layer, "expert": note.expert, **cause}
        case PrefetchUnused():
            return "unused", {"step": note.step, "layer": note.layer, "expert": note.expert}
