"""A terminal that shows screens and hears keys: `top` in a terminal."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.text import Text

from .engine_views import EngineView
from .screen import PAGES, Size, screen

NEXT_KEYS = ("\t", "\x1b[C", "\x1b[B", "l", "j")
PREVIOUS_KEYS = ("\x1b[Z", "\x1b[D", "\x1b[A", "h", "k")
QUIT_KEYS = ("q", "Q")
KEYS_LINE = "q quits   tab or arrows: "


def screen_console() -> Console:
    """Return a console on stdout. With NO_COLOR it has no styles at all: bold and dim are colours to some eyes."""
    if os.environ.get("NO_COLOR"):
        return Console(highlight=False, markup=False, color_system=None)
    return Console(highlight=False, markup=False)


def is_screen(console: Console) -> bool:
    """Return whether a console can be drawn on again and again: TERM=dumb names a terminal that cannot."""
    return console.is_terminal and not console.is_dumb_terminal


def hears_keys() -> bool:
    """Return whether stdin is a terminal; it may be closed, too."""
    return getattr(sys.stdin, "isatty", bool)()


class LiveScreen:
    """Shows the views of an engine, of one engine of a group at a time, until a key asks for the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._page = self._engine = 0
        self._views: list[EngineView] = []

    def run(self, look: Callable[[], list[EngineView]], interval_s: float) -> None:
        """Show what `look` returns, every `interval_s`; keys are heard at once. Raises what `look` raises."""
        with keys_heard(), Live(console=self._console, screen=True, auto_refresh=False) as live:
            while True:
                due_s = time.monotonic() + interval_s
                self._views = look()
                live.update(self.render(), refresh=True)
                while (left_s := due_s - time.monotonic()) > 0:
                    keys = read_keys(left_s)
                    if any(key in QUIT_KEYS for key in keys):
                        return
                    if any([self.on_key(key) for key in keys]):
                        live.update(self.render(), refresh=True)

    def on_key(self, key: str) -> bool:
        """Turn the page; return whether the screen changed. A digit chooses an engine of a group."""
        if key in NEXT_KEYS or key in PREVIOUS_KEYS:
            self._page = (self._page + (1 if key in NEXT_KEYS else -1)) % len(PAGES)
        elif key.isdecimal() and 0 < int(key) <= len(self._views):
            self._engine = int(key) - 1
        else:
            return False
        return True

    def render(self) -> RenderableType:
        """Return the screen: the page, and the keys in the last line."""
        if not self._views:
            return Text("No engine answers")
        size = Size(self._console.width, self._console.height)
        view = self._views[min(self._engine, len(self._views) - 1)]
        page = screen(view, PAGES[self._page], Size(size.width, size.height - 1))
        layout = Layout()
        layout.split_column(Layout(page, name="page"), Layout(self._keys_line(size.width), size=1, name="keys"))
        return layout

    def _keys_line(self, width: int) -> Text:
        line = Text(KEYS_LINE, style="dim", no_wrap=True, overflow="crop", end="")
        for number, name in enumerate(PAGES):
            line.append(f"[{name}]" if number == self._page else f" {name} ", "bold" if number == self._page else "dim")
        if len(self._views) > 1:
            line.append(f"   1–{len(self._views)}: engine", "dim")
        line.truncate(width)
        return line


@contextmanager
def keys_heard() -> Iterator[None]:
    """Let keys arrive one by one and unseen, if stdin is a terminal; afterwards it is as it was."""
    if not hears_keys():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def read_keys(timeout_s: float) -> list[str]:
    """Return the keys that come within `timeout_s`, as soon as there is one; none if stdin is no terminal."""
    if not hears_keys():
        time.sleep(timeout_s)
        return []
    if not select.select([sys.stdin], [], [], timeout_s)[0]:
        return []
    return split_keys(os.read(sys.stdin.fileno(), 64).decode(errors="replace"))


def split_keys(text: str) -> list[str]:
    """Return the keys of what a terminal sent: characters, and escape sequences of the arrows."""
    return re.findall(r"\x1b\[[A-Z]|[^\x1b]", text)
