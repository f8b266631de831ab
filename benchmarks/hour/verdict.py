"""Whether a target is met: by its figure with a 95 % interval, or because it was seen."""

from __future__ import annotations

from typing import NamedTuple

from ..intervals import Interval


class Verdict(NamedTuple):
    """A figure beside its target; `at_least`: the target is a lower bound, else an upper one."""

    target: str
    what: str
    goal: float
    at_least: bool
    figure: Interval | None
    note: str = ""
    """Why there is no figure."""

    @property
    def said(self) -> str:
        """A target is met when the interval reaches it."""
        if self.figure is None:
            return "not run"
        if self.at_least:
            return "met" if self.figure.high >= self.goal else "not met"
        return "met" if self.figure.low <= self.goal else "not met"

    @property
    def cells(self) -> tuple[str, ...]:
        sign = "≥" if self.at_least else "≤"
        return (self.target, self.what, f"{sign} {self.goal:g}", str(self.figure or self.note or "–"), self.said)


class Seen(NamedTuple):
    """Something that is to happen, and what happened."""

    target: str
    what: str
    wanted: str
    found: str
    right: bool | None
    """None: not run."""

    @property
    def said(self) -> str:
        if self.right is None:
            return "not run"
        return "met" if self.right else "not met"

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.target, self.what, self.wanted, self.found, self.said)
