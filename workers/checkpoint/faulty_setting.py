"""Finds the setting of a config.json that makes the library fail: with its default the library works. No torch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from .config_values import shortened

KeyPath = tuple[str, ...]
"""Keys from the top of a config.json to one of its values."""

MAX_SECONDS = 5.0
_ODD = 2
"""Oddness from which a value is suspicious by itself."""
_MUCH_LARGER = 10_000


def describe_faulty_setting(
    values: dict[str, Any],
    defaults: dict[str, Any],
    works: Callable[[dict[str, Any]], bool],
    clock_s: Callable[[], float] = time.monotonic,
) -> str:
    """Return `; KEY is VALUE` for the faulty setting, or nothing if none is found.

    `works` tests a changed copy of `values`; tests take `MAX_SECONDS` at most.
    """
    path = find_faulty_setting(values, defaults, works, clock_s)
    return "" if path is None else f"; {'.'.join(path)} is {shortened(_value_at(values, path))}"


def find_faulty_setting(
    values: dict[str, Any],
    defaults: dict[str, Any],
    works: Callable[[dict[str, Any]], bool],
    clock_s: Callable[[], float] = time.monotonic,
) -> KeyPath | None:
    """Return the path of the first setting with whose default `values` work, trying the oddest first.

    If none works in time, return the oddest setting if it is suspicious by itself, else None.
    """
    suspects = _suspects(values, defaults)
    until_s = clock_s() + MAX_SECONDS
    for path, _ in suspects:
        if works(_with_default(values, defaults, path)):
            return path
        if clock_s() > until_s:
            break
    return next((path for path, oddness in suspects if oddness >= _ODD), None)


def _suspects(values: dict[str, Any], defaults: dict[str, Any]) -> list[tuple[KeyPath, float]]:
    found = [
        (path, min(_oddness(value, _value_at(defaults, path)), 1 if path[-1].endswith("_token_id") else math.inf))
        for path, value in _leaves(values, ())
    ]
    return sorted((suspect for suspect in found if suspect[1]), key=lambda suspect: -suspect[1])


def _leaves(values: dict[str, Any], path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    for key, value in values.items():
        if not isinstance(key, str):  # the library's own tables of labels
            continue
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _value_at(values: Any, path: KeyPath) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _oddness(value: Any, default: Any) -> int:
    """Return 0 for the default, 1 for another value, more for another type or for a size far from the default's."""
    if value == default and type(value) is type(default):
        return 0
    if default is None:
        return _ODD if _is_number(value) and (not math.isfinite(value) or value < 0) else 1
    if _is_number(value) and _is_number(default):
        return _ODD + 1 if _is_absurd(value, default) else 1
    return 1 if type(value) is type(default) else _ODD + 2


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_absurd(value: float, default: float) -> bool:
    if not math.isfinite(value) or abs(value) > _MUCH_LARGER * (abs(default) + 1):
        return True
    return (value < 0 <= default) or (value == 0 < default)


def _with_default(values: dict[str, Any], defaults: dict[str, Any], path: KeyPath) -> dict[str, Any]:
    changed = copy.deepcopy(values)
    *outer, last = path
    inside = changed
    for key in outer:
        inside = inside[key]
    inside.pop(last)
    if (default := _value_at(defaults, path)) is not None:
        inside[last] = copy.deepcopy(default)
    return changed
