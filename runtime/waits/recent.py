"""The last steps of compute with the reasons of their waits, from spans as they come."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

import msgspec

from ...errors import UsageError
from ...ipc.messages import Span, StageSpans
from .blame import MEANINGS, Blame, Blames, blame_stalls, covered_ns
from .history import COMPUTE, LOADER, History, read_history
from .report import Wait, report_waits
from .text import wait_lines

MAX_STEPS = 64
MAX_SPANS = 4000
"""Spans that are kept for steps that have not ended; a watched engine makes some 700 in a second."""
EVICTIONS_NS = 1_000_000_000
"""Time before a step in which an eviction may explain its waits."""
LONGEST = 3
MAX_ANSWERS = 15
"""Answers over which the overlap of loading and computing is taken."""
KINDS = ("prefill", "decode")
NamedSpan = tuple[str, Span]


class RecentStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step. `waits`: reason -> nanoseconds; with `unexplained_ns` they add up to `waited_ns` but for rounding."""

    number: int
    kind: str
    rows: int
    start_ns: int
    took_ns: int
    waited_ns: int
    unexplained_ns: int
    """Waits whose spans no stage has made: only the first spans of every third second are."""
    waits: dict[str, int]


class RecentWaits(msgspec.Struct, frozen=True, kw_only=True):
    """The last steps, the sum of their waits by reason, the largest first, and the longest waits in words."""

    steps: list[RecentStep] = []
    took_ns: int = 0
    waited_ns: int = 0
    unexplained_ns: int = 0
    reasons: dict[str, int] = {}
    meanings: dict[str, str] = {}
    """Reason -> its explanation."""
    longest: list[str] = []
    """Lines as `expertflow why` prints them."""
    loading_ns: int = 0
    """Time in which experts were loaded while steps ran, of the last answers."""
    hidden_ns: int = 0
    """Part of it in which compute waited for none."""

    @property
    def overlap(self) -> float | None:
        """Return the share of load time that was hidden behind compute; None without loads."""
        return self.hidden_ns / self.loading_ns if self.loading_ns else None


class RecentSpans:
    """Explains steps as their spans come. Pure: spans in, reasons out.

    Stages publish at different moments of a second, and in the middle of long steps. So the steps of one answer are
    explained when the next one is there, from all spans since the step before; each step is explained once.
    """

    def __init__(self) -> None:
        self._kept: list[NamedSpan] = []
        self._steps: deque[RecentStep] = deque(maxlen=MAX_STEPS)
        self._longest: list[Wait] = []
        self._overlaps: deque[tuple[int, int]] = deque(maxlen=MAX_ANSWERS)
        """Load time of an answer, and its hidden part."""
        self.last_number = -1
        """Number of the newest spans that were added."""

    def add(self, published: Sequence[StageSpans]) -> None:
        """Add the spans of one answer, in the order in which they were published; none is an answer, too."""
        before, new = self._kept, list[NamedSpan]()
        for spans in published:
            new += [(spans.stage, span) for span in spans.spans]
            self.last_number = spans.number
        self._kept = (before + new)[-MAX_SPANS:]
        steps = [span for stage, span in before if stage == COMPUTE and span.name in KINDS][-MAX_STEPS:]
        if steps:
            self._explain(steps, self._kept)
            self._forget_before(max(step.end_ns for step in steps))

    def waits(self) -> RecentWaits:
        """Return the last steps and why they waited."""
        reasons: Counter[str] = Counter()
        for step in self._steps:
            reasons.update(step.waits)
        return RecentWaits(
            steps=list(self._steps),
            took_ns=sum(step.took_ns for step in self._steps),
            waited_ns=sum(step.waited_ns for step in self._steps),
            unexplained_ns=sum(step.unexplained_ns for step in self._steps),
            reasons=dict(reasons.most_common()),
            meanings={name: MEANINGS.get(name, "") for name in reasons},
            longest=[line for number, wait in enumerate(self._longest, 1) for line in wait_lines(number, wait)],
            loading_ns=sum(loading_ns for loading_ns, _ in self._overlaps),
            hidden_ns=sum(hidden_ns for _, hidden_ns in self._overlaps),
        )

    def _explain(self, steps: list[Span], spans: list[NamedSpan]) -> None:
        """Explain steps; spans that do not say why they waited leave them unexplained."""
        shown = {span.detail.get("step") for span in steps}
        try:
            history = read_history(each for each in spans if each[0] != COMPUTE or each[1].detail.get("step") in shown)
        except UsageError:
            history = History([], [], {}, [], [])
        blames = blame_stalls(history)
        by_step: dict[int, list[Blames]] = {}
        for stall, of_stall in zip(history.stalls, blames, strict=True):
            by_step.setdefault(stall.step, []).append(of_stall)
        self._steps += [_step(span, by_step.get(int(span.detail.get("step", -1)), [])) for span in steps]
        self._overlaps.append(_overlap(history))
        self._keep_longest(report_waits(history, LONGEST, blames).longest)

    def _forget_before(self, end_ns: int) -> None:
        """Forget the spans that no later step needs: the waits of a long step may come seconds before its end."""
        since_ns = {COMPUTE: end_ns, LOADER: end_ns - EVICTIONS_NS}
        self._kept = [(stage, span) for stage, span in self._kept if span.end_ns > since_ns.get(stage, end_ns)]

    def _keep_longest(self, waits: list[Wait]) -> None:
        since_ns = self._steps[0].start_ns
        found = [wait for wait in self._longest + waits if wait.start_ns >= since_ns]
        self._longest = sorted(found, key=lambda wait: -wait.waited_ns)[:LONGEST]


def _overlap(history: History) -> tuple[int, int]:
    """Return the nanoseconds in which experts were loaded, and those of them in which compute waited for none.

    Only time counts for which both are known: the spans of steps and those of loads end at different moments.
    """
    if not history.fills or not history.steps:
        return 0, 0
    first_ns = max(history.steps[0].start_ns, history.fills[0].start_ns)
    last_ns = min(max(step.end_ns for step in history.steps), max(fill.end_ns for fill in history.fills))
    loads = _clip([(fill.start_ns, fill.end_ns) for fill in history.fills], first_ns, last_ns)
    waits = _clip([(stall.start_ns, stall.end_ns) for stall in history.stalls], first_ns, last_ns)
    return covered_ns(loads), covered_ns(sorted(loads + waits)) - covered_ns(waits)


def _clip(spans: list[tuple[int, int]], first_ns: int, last_ns: int) -> list[tuple[int, int]]:
    clipped = [(max(start_ns, first_ns), min(end_ns, last_ns)) for start_ns, end_ns in spans]
    return [(start_ns, end_ns) for start_ns, end_ns in clipped if start_ns < end_ns]


def _step(span: Span, blames: list[Blames]) -> RecentStep:
    waits: Counter[str] = Counter()
    for stall in blames:
        for name, time_ns in stall.items():
            waits[str(name)] += round(time_ns)
    unexplained_ns = waits.pop(str(Blame.UNKNOWN), 0)
    waited_ns = max(1000 * int(span.detail.get("waited_us", 0)), waits.total() + unexplained_ns)
    return RecentStep(
        number=int(span.detail.get("step", 0)) & 0xFFFFFFFF,
        kind=span.name,
        rows=int(span.detail.get("rows", 0)),
        start_ns=span.start_ns,
        took_ns=span.end_ns - span.start_ns,
        waited_ns=waited_ns,
        unexplained_ns=waited_ns - waits.total(),
        waits={name: time_ns for name, time_ns in waits.most_common() if time_ns > 0},
    )
