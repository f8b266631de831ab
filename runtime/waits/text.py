"""A report of waits as lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from .blame import MEANINGS, Blame
from .report import EvictionFacts, FillFacts, LinkUse, MissingExpert, Wait, WaitReport

MAX_EXPERTS = 4
"""Experts of a wait that are explained one by one; JSON has all."""


def report_lines(report: WaitReport) -> Iterator[str]:
    """Yield the sum by blame, then the longest waits, each with its chain."""
    if not report.waits:
        yield f"{report.steps:,} steps in {_time(report.steps_ns)}; none waited for an expert"
        return
    share = report.waited_ns / max(report.steps_ns, 1)
    steps = f"{report.steps:,} steps in {_time(report.steps_ns)}"
    yield f"{steps}; waited {report.waits:,} times for experts, {_time(report.waited_ns)} in all ({share:.0%})"
    yield ""
    for name, time_ns in report.blames.items():
        yield f"{_time(time_ns):>8} {time_ns / max(report.waited_ns, 1):>4.0%}  {name}: {MEANINGS.get(name, '')}"
    for number, wait in enumerate(report.longest, 1):
        yield ""
        yield from wait_lines(number, wait)


def wait_lines(number: int, wait: Wait) -> Iterator[str]:
    """Yield one wait with its chain, as entry `number` of a list."""
    missing = f"{len(wait.experts)} of {wait.wanted} experts missing"
    slots = {expert.slots for expert in wait.experts if expert.blamed == Blame.CAPACITY}
    missing += "".join(f", {count} slots" for count in slots)
    yield f"{number}. {_time(wait.waited_ns)} at step {_step(wait.step)}, layer {wait.layer}: {missing}"
    for expert in wait.experts[:MAX_EXPERTS]:
        yield from _expert_lines(expert)
    if more := wait.experts[MAX_EXPERTS:]:
        counts = Counter(expert.reason or "no reason noted" for expert in more)
        yield f"   {len(more)} more: {', '.join(f'{count} {reason}' for reason, count in counts.most_common())}"
    if wait.link:
        yield f"   on the link meanwhile: {', '.join(map(_use_text, wait.link))}"
    yield f"   blamed: {', '.join(f'{name} {_time(time_ns)}' for name, time_ns in wait.blames.items())}"


def _expert_lines(missing: MissingExpert) -> Iterator[str]:
    yield f"   expert {missing.expert}: {_reason_text(missing)}"
    if missing.evicted is not None:
        yield f"      {_eviction_text(missing.evicted)}"
    if missing.filled is not None:
        yield f"      {_fill_text(missing.filled)}"


def _reason_text(missing: MissingExpert) -> str:
    reason = missing.reason or "no reason noted"
    if missing.under_way:
        return f"{reason} (under way for a {missing.under_way})"
    if missing.chance_percent >= 0:
        return f"{reason} (probability {missing.chance_percent} %, needed {missing.wanted_percent} %)"
    return reason


def _eviction_text(evicted: EvictionFacts) -> str:
    text = f"evicted {_when(-evicted.before_wait_ns)}"
    if not evicted.cause:
        return f"{text}, with its compute"
    text += f" for a {evicted.cause}"
    if evicted.for_step >= 0:
        text += f" of step {_step(evicted.for_step)}, layer {evicted.for_layer}"
    if evicted.for_expert is None:
        return text
    layer, expert = evicted.for_expert
    unused = ", which its step did not use" if evicted.for_unused else ""
    return f"{text}: expert {expert} of layer {layer} took its slot{unused}"


def _fill_text(filled: FillFacts) -> str:
    times = f"{_time(filled.queued_ns)} in the queue, {_time(filled.transfer_ns)} on the link"
    return f"ordered {_when(filled.ordered_ns)} for a {filled.cause or 'cause not known'}, {times}"


def _use_text(use: LinkUse) -> str:
    unused = "unused " if use.unused else ""
    fills = f"{use.fills} {unused}fill{'s' if use.fills > 1 else ''}"
    return f"{fills} for a {use.cause or 'cause not known'} ({_time(use.time_ns)})"


def _when(after_ns: int) -> str:
    """Return a time relative to the beginning of the wait, as text."""
    return f"{_time(-after_ns)} before the wait" if after_ns < 0 else f"{_time(after_ns)} into the wait"


def _step(number: int) -> str:
    """Return the number of a step since its scheduler's start, and the number of the start if not the first."""
    start, step = divmod(number, 1 << 32)
    return f"{step} of scheduler {start}" if start > 1 else str(step)


def _time(time_ns: int) -> str:
    """Return a time with three figures, in the unit that fits."""
    for unit, size_ns in (("s", 10**9), ("ms", 10**6)):
        if time_ns >= size_ns:
            return f"{time_ns / size_ns:.3g} {unit}"
    return f"{time_ns / 1000:.0f} µs"
