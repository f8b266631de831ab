"""Which parts run: those that were asked for, as long as the time lasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from expertflow.errors import UsageError

from .parts import Part


@dataclass
class Plan:
    parts: list[Part] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """By name, why."""


def plan(parts: Sequence[Part], only: Sequence[str], minutes: float, quick: bool) -> Plan:
    """In their order; a part that does not fit what is left is passed over. Raises UsageError for an unknown target."""
    known = {name for part in parts for name in (part.name, *part.targets)}
    if unknown := [name for name in only if name not in known]:
        raise UsageError(f"no part measures {', '.join(unknown)}", "--only", f"Choose of {', '.join(sorted(known))}")
    chosen, left = Plan(), minutes
    for part in parts:
        needed = part.minutes_of(quick)
        if only and not {part.name, *part.targets} & set(only):
            chosen.left_out[part.name] = "not asked for"
        elif needed > left:
            chosen.left_out[part.name] = f"needs {needed:.0f} minutes, {left:.0f} are left"
        else:
            chosen.parts.append(part)
            left -= needed
    return chosen
