"""Lines of a user from a terminal or a pipe, and Ctrl-C that stops an answer, not the program."""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType
from typing import Self

PROMPT = "> "
_FAINT, _PLAIN = "\x1b[2m", "\x1b[0m"


class Terminal:
    """Reads questions from stdin and writes answers to stdout. Of a pipe, every line is a question."""

    def __init__(self) -> None:
        self.is_interactive = sys.stdin.isatty()
        if self.is_interactive:
            import readline  # noqa: F401 - its import gives `input` a history and editing

    def read(self) -> str | None:
        """Return the next line that is not empty; None at the end. Ctrl-C forgets a line that is being typed."""
        while True:
            try:
                line = input(PROMPT) if self.is_interactive else _read_line()
            except EOFError:
                return None
            except KeyboardInterrupt:
                if not self.is_interactive:
                    raise
                self.tell("\n(/exit or Ctrl-D ends)\n")
                continue
            if line.strip():
                return line.strip()

    def write(self, content: str, reasoning: str = "") -> None:
        """Write new text of an answer; reasoning goes to stderr, faint on a terminal."""
        if reasoning:
            faint = sys.stderr.isatty()
            sys.stderr.write(f"{_FAINT}{reasoning}{_PLAIN}" if faint else reasoning)
            sys.stderr.flush()
        sys.stdout.write(content)
        sys.stdout.flush()

    def tell(self, text: str) -> None:
        """Write to stderr what is no answer."""
        sys.stderr.write(text)
        sys.stderr.flush()


class StopKey:
    """Notes Ctrl-C instead of raising KeyboardInterrupt, within `with`. A second one raises it."""

    def __init__(self) -> None:
        self.pressed = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True


def _read_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
