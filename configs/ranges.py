"""Numbers that an option allows, stated where it is declared: `share: Annotated[float, Meta(ge=0, le=1)] = 0.2`."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from msgspec import Meta

from ..errors import UsageError

Seed = Annotated[int, Meta(ge=0, lt=2**63)]


def check_numbers(options: Any) -> None:
    """Of a dataclass, all fields that state a range. Raises UsageError naming the first one outside of it."""
    for name, allowed in stated_ranges(type(options)).items():
        check_number(getattr(options, name), name, allowed)


def check_number(value: float, name: str, allowed: Meta) -> None:
    """Raises UsageError with the option, the value and the range."""
    finite = isinstance(value, int) or math.isfinite(value)
    if not (finite and _inside(value, allowed)):
        words = range_words(allowed)
        raise UsageError(f"must be {words}, not {value}", name, f"Give a number {words}")


def stated_ranges(kind: type[Any]) -> dict[str, Meta]:
    """The fields of a dataclass whose type states a range."""
    hints = get_type_hints(kind, include_extras=True)
    annotated = {each.name: hints[each.name] for each in fields(kind) if get_origin(hints[each.name]) is Annotated}
    return {name: extra for name, hint in annotated.items() for extra in get_args(hint)[1:] if isinstance(extra, Meta)}


def range_words(allowed: Meta) -> str:
    """For people: `from 0 to 1`, `from 0 to below 1`, `above 0`."""
    if allowed.ge is not None and allowed.le is not None:
        return f"from {allowed.ge:,} to {allowed.le:,}"
    if allowed.ge is not None and allowed.lt is not None:
        return f"from {allowed.ge:,} to below {allowed.lt:,}"
    bounds = {"at least": allowed.ge, "above": allowed.gt, "at most": allowed.le, "below": allowed.lt}
    return " and ".join(f"{word} {bound:,}" for word, bound in bounds.items() if bound is not None)


def _inside(value: float, allowed: Meta) -> bool:
    return (
        (allowed.ge is None or value >= allowed.ge)
        and (allowed.gt is None or value > allowed.gt)
        and (allowed.le is None or value <= allowed.le)
        and (allowed.lt is None or value < allowed.lt)
    )
