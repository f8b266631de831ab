"""Orders of an operator to the supervisor of a running engine, and the answer to them."""

from __future__ import annotations

from .base import ErrorFacts, Message


class DrainEngine(Message, frozen=True):
    """Accept no new request, finish those that were accepted within `deadline_s`, then end the engine."""

    deadline_s: float


class ReloadEngine(Message, frozen=True):
    """Change these fields of the configuration (name -> value) while the engine runs."""

    changes: dict[str, str | int | float | bool]


class OrderEnded(Message, frozen=True):
    """Answer to `DrainEngine`, sent just before the end, or to `ReloadEngine`."""

    error: ErrorFacts | None = None
    unfinished: int = 0
    """Requests that the deadline of a drain cut off; they end with a typed error."""
    previous: dict[str, str | int | float | bool] = {}
    """Fields that a reload changed -> their values before."""


class CloseIntake(Message, frozen=True):
    """Order of the supervisor to the scheduler: refuse new requests and finish those that were accepted."""
