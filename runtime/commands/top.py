"""`expertflow top`: live counters of a running engine."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta
from rich.live import Live

from ..client.watching import Watcher, find_engine
from ..command_line.base import DONE, Command
from ..monitor.readings import Reading, read_pairs
from ..monitor.tables import readings_view, result_console


@dataclass(frozen=True, kw_only=True)
class Top(Command):
    """Show live what the stages of a running engine do, or those of each engine in a group; Ctrl-C ends it."""

    address: str = ""
    """Address of the engine, as `expertflow serve` prints it. Empty: your only running engine."""
    once: bool = False
    """Show it once and end."""
    json: bool = False
    """One line of JSON for each reading (and engine) instead of tables."""
    interval_s: Annotated[float, Meta(ge=0.1, le=86_400)] = 2.0
    """Seconds between readings; rates are over this time."""

    def run(self) -> int:
        with Watcher(find_engine(self.address)) as watcher:
            readings = self._readings(watcher)
            if self.once:
                self._show(next(readings))
            elif result_console().is_terminal and not self.json:
                self._live(readings)
            else:
                self._show_all(readings)
        return DONE

    def _readings(self, watcher: Watcher) -> Iterator[list[Reading]]:
        before = watcher.snapshot()
        while True:
            time.sleep(self.interval_s)
            now = watcher.snapshot()
            yield read_pairs(before, now)
            before = now

    def _show(self, readings: list[Reading]) -> None:
        if self.json:
            for reading in readings:
                sys.stdout.write(msgspec.json.encode(reading).decode() + "\n")
            sys.stdout.flush()
        else:
            result_console().print(readings_view(readings))

    def _show_all(self, readings: Iterator[list[Reading]]) -> None:
        for group in readings:
            self._show(group)

    def _live(self, readings: Iterator[list[Reading]]) -> None:
        with Live(console=result_console(), auto_refresh=False) as live:
            for group in readings:
                live.update(readings_view(group), refresh=True)
