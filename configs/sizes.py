"""Memory sizes as people write them: `900MB`, `1GiB`, `25%`."""

from __future__ import annotations

import re

import msgspec

from ..errors import UsageError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*|%)\s*")

MIN_BARE_BYTES = 10**6
"""A size without a unit is bytes; a smaller number was meant as a percentage, as GB or as MB."""


class Size(msgspec.Struct, frozen=True):
    """Either bytes or a share (0.25 for 25 %) of something known later; the other one is None."""

    count_bytes: int | None
    share: float | None

    def of(self, whole_bytes: int) -> int:
        """Return bytes; `whole_bytes` is what a percentage refers to."""
        if self.count_bytes is not None:
            return self.count_bytes
        return round((self.share or 0.0) * whole_bytes)


def parse_size(text: str, where: str) -> Size:
    """Read a size; raises UsageError naming `where` (the option)."""
    match = _PATTERN.fullmatch(text)
    if match is None or (match[2] != "%" and match[2].upper() not in _UNITS):
        raise UsageError(f"cannot read the size '{text}'", where, "Write for example 900MB, 1GiB or 25%")
    number = float(match[1])
    if number >= 2**60:
        raise UsageError(f"the size '{text}' is beyond any memory", where, "Write for example 900MB, 1GiB or 25%")
    if match[2] != "%":
        return Size(int(number * _UNITS[match[2].upper()]), None)
    if not 0 < number <= 100:
        raise UsageError(f"a percentage must be above 0 and at most 100, not {text}", where, "Write for example 25%")
    return Size(None, number / 100)


def parse_memory(text: str, where: str, percentage: bool = True) -> Size:
    """Read a size of memory or of data; 0 is allowed. Raises UsageError, also for a small number without a unit.

    `percentage`: whether the option takes one; only the advice depends on it.
    """
    size, bare = parse_size(text, where), text.strip()
    if bare[-1].isdigit() and 0 < float(bare) < MIN_BARE_BYTES:
        guesses = "? or ".join(_guesses(bare, percentage))
        raise UsageError(f"is '{bare}', without a unit", where, f"Did you mean {guesses}? For bytes write {bare}B")
    return size


def _guesses(bare: str, percentage: bool) -> list[str]:
    """Return what a number without a unit was probably meant as, likeliest first."""
    number = float(bare)
    if number > 100:
        return [f"{bare}MB"]
    share = f"{100 * number:g}%" if number < 1 else f"{bare}%"
    return [share, f"{bare}GB"] if percentage else [f"{bare}GB", f"{bare}MB"]


def format_size(count_bytes: float) -> str:
    """Return bytes in words, in decimal units: `1.50 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count_bytes >= size:
            return f"{count_bytes / size:.{2 if unit == 'GB' else 1}f} {unit}"
    return f"{int(count_bytes)} B"
