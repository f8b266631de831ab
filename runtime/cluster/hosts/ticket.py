"""The ticket: the first argument of every call to a replica. It names the replica, so that Serve sends it nowhere else.

Serve's own routing spreads calls. Here the gateway has chosen already, so the request router of the deployment only
follows the ticket. In the process of the gateway a ticket may carry a watcher, which the router tells of every change
of the set of replicas; the watcher does not travel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Watcher = Callable[[frozenset[str]], bool]
"""Takes the names of all replicas, in a thread of Serve; returns False once it is to be told no more."""


class Ticket:
    """Names the replica that a call is for, and the link of the gateway that makes it."""

    def __init__(self, replica: str, link: str, watcher: Watcher | None = None) -> None:
        self.replica, self.link, self.watcher = replica, link, watcher

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the watcher behind."""
        return Ticket, (self.replica, self.link)
