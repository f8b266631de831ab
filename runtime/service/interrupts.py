"""Ctrl-C while an engine starts or stops: the first one begins an orderly end, the next ones do not break it off."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

STOPPED = 130
PATIENCE = b"stopping, within ten seconds; Ctrl-C once more leaves at once\n"


@contextmanager
def interrupts_once() -> Iterator[None]:
    """Let the first Ctrl-C raise KeyboardInterrupt; the next one is answered by a line, one more ends the process."""
    with _handled(_Interrupts(raises=True)):
        yield


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Answer the first Ctrl-C by a line, as the end has begun already; one more ends the process."""
    with _handled(_Interrupts(raises=False)):
        yield


class _Interrupts:
    """A handler of SIGINT that counts."""

    def __init__(self, raises: bool) -> None:
        self._raises, self._told = raises, False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._raises:
            self._raises = False
            raise KeyboardInterrupt
        if self._told:  # processes see the end of this one; the next start removes the run directory
            os.write(2, b"stopped\n")
            os._exit(STOPPED)
        self._told = True
        os.write(2, PATIENCE)


@contextmanager
def _handled(handler: _Interrupts) -> Iterator[None]:
    """Install the handler, unless Ctrl-C does something else than to raise: then the caller has reasons of its own."""
    if current_thread() is not main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
