"""SIGTERM as an exception: what runs is ended and what was measured is kept."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

ASKED_TO_END = 128 + signal.SIGTERM


@contextlib.contextmanager
def ended_by_signal() -> Iterator[None]:
    """Within it SIGTERM raises SystemExit."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(ASKED_TO_END)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
