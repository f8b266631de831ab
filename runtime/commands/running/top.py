"""`expertflow top`: live figures of a running engine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
import tyro
from msgspec import Meta

from ...bundle.file import read_bundle
from ...bundle.views import bundle_views
from ...client.watching import Watcher, find_engine
from ...command_line.base import DONE, Command
from ...monitor.engine_views import EngineView, EngineViews
from ...monitor.live_screen import LiveScreen, is_screen, screen_console
from ...monitor.screen import PAGES, Size, screen
from ...monitor.tables import result_console
from ...monitor.view_json import view_json

PLAIN_HEIGHT = 60
"""Lines of an engine where no terminal limits them."""


@dataclass(frozen=True, kw_only=True)
class Top(Command):
    """Show live what the stages of a running engine do, or those of each engine in a group.

    Keys: q quits, tab and the arrows turn the page (overview, experts, requests, waits), a digit chooses an engine.
    """

    option_groups: ClassVar = {"Engine": ("address", "keys")}
    address: str = ""
    """Address of the engine, as `expertflow serve` prints it. Empty: your only running engine."""
    keys: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of your keys, for an address over TCP (tcp://HOST:PORT)."""
    once: bool = False
    """Show it once and end."""
    json: bool = False
    """One line of JSON for each reading (and engine) instead of a screen."""
    interval_s: Annotated[float, Meta(ge=0.1, le=86_400)] = 2.0
    """Seconds between readings; their rates are over this time."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from", metavar="BUNDLE")] = None
    """Show an engine as it was when `expertflow bundle` wrote this file, with the hour before."""

    def run(self) -> int:
        if self.from_ is not None:
            self._show_bundle(bundle_views(read_bundle(self.from_)))
            return DONE
        with Watcher(find_engine(self.address), self.keys) as watcher:
            views = EngineViews()

            def look() -> list[EngineView]:
                return views.update(watcher.snapshot(), watcher.history(views.since_ns), watcher.activity())

            look()
            console = screen_console()
            if is_screen(console) and not (self.json or self.once):
                LiveScreen(console).run(look, self.interval_s)
                return DONE
            for shown in self._looks(look):
                self._show(shown)
                if self.once:
                    break
        return DONE

    def _show_bundle(self, views: list[EngineView]) -> None:
        console = screen_console()
        if is_screen(console) and not (self.json or self.once):
            LiveScreen(console).run(lambda: views, self.interval_s)
        else:
            self._show(views)

    def _looks(self, look: Callable[[], list[EngineView]]) -> Iterator[list[EngineView]]:
        while True:
            time.sleep(self.interval_s)
            yield look()

    def _show(self, views: list[EngineView]) -> None:
        if self.json:
            for view in views:
                sys.stdout.write(msgspec.json.encode(view_json(view)).decode() + "\n")
            sys.stdout.flush()
            return
        console = result_console()
        for view in views:
            console.print(screen(view, PAGES[0], Size(console.width, PLAIN_HEIGHT)))
