"""The living children of an engine, and the poller that sees them end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection

import zmq

from .children import Child


class ChildSet:
    """At most one child a stage."""

    def __init__(self, poller: zmq.Poller) -> None:
        self._poller = poller
        self._children: dict[str, Child] = {}

    def has_any(self, stages: Collection[str]) -> bool:
        """Whether a child of one of these stages lives."""
        return not self._children.keys().isdisjoint(stages)

    def add(self, child: Child) -> None:
        self._children[child.stage] = child
        self._poller.register(child.pidfd, zmq.POLLIN)

    def take_ended(self, ready: dict[object, int]) -> list[Child]:
        """Those whose descriptor is `ready`: they have ended, are to be reaped, and count no more."""
        ended = [child for child in self._children.values() if child.pidfd in ready]
        for child in ended:
            del self._children[child.stage]
            self._poller.unregister(child.pidfd)
        return ended

    def signal(self, number: signal.Signals, which: Callable[[Child], bool] = lambda child: True) -> None:
        """Send a signal to those for which `which` holds."""
        for child in self._children.values():
            if which(child):
                child.send(number)
