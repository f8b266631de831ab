"""SIGTERM and Ctrl-C to a service: the first one asks for an orderly end, the second one for an end at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, current_thread, main_thread
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Count of the signals that came; `asked` is set by the first, `urged` by the second."""

    def __init__(self, answer: str) -> None:
        """`answer` is written to stderr after the first signal."""
        self.asked, self.urged = Event(), Event()
        self.interrupted = False
        """The first signal was Ctrl-C: the exit code is then that of an interrupted command."""
        self._answer = f"{answer}\n".encode()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal, in the main thread."""
        if self.asked.is_set():
            self.urged.set()
            return
        self.interrupted = number == signal.SIGINT
        self.asked.set()
        os.write(2, self._answer)


@contextmanager
def stop_signals(answer: str) -> Iterator[StopSignals]:
    """Take both signals inside. One that somebody else takes already, or ignores, is left alone."""
    signals = StopSignals(answer)
    if current_thread() is not main_thread():
        yield signals
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if number == signal.SIGTERM or handler is signal.default_int_handler:
            signal.signal(number, signals.handle)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
