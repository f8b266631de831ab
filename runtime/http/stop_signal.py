"""The signal at which requests that still run must end."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import EngineError


class StopSignal:
    """A flag that is set once, and calls its listeners then."""

    def __init__(self) -> None:
        self.listeners: set[Callable[[], None]] = set()
        """Functions that are called when the flag is set."""
        self._set = False

    def set(self) -> None:
        """Set the flag, and call the listeners."""
        self._set = True
        for listener in list(self.listeners):
            listener()

    def is_set(self) -> bool:
        """Return whether the flag was set."""
        return self._set


def stopped() -> EngineError:
    """Return the error for requests that the end of the server cuts short."""
    return EngineError("the server is being stopped", "http", "Send the request again later")
