"""`expertflow why`: explains from a timeline why steps waited for experts."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import tyro
from msgspec import Meta

from ....ipc.messages import Progress, Span
from ...bundle.file import is_bundle, read_bundle
from ...command_line.base import DONE, Command
from ...engine.timeline import read_timeline
from ...monitor.progress import ProgressView
from ...waits.history import read_history
from ...waits.report import report_waits
from ...waits.text import report_lines


@dataclass(frozen=True, kw_only=True)
class Why(Command):
    """Explain from a timeline why steps waited for experts: the sum by cause, and the longest waits with their chain.

    An engine with --timeline FILE writes the timeline. A bundle (`expertflow bundle`) has one, too.
    """

    timeline: tyro.conf.Positional[Path]
    """File that an engine wrote, or a bundle."""
    longest: Annotated[int, Meta(ge=0, le=10**6)] = 10
    """Number of waits that are explained one by one."""
    json: bool = False
    """JSON instead of text; times are in nanoseconds."""

    def _spans(self) -> Iterable[tuple[str, Span]]:
        return read_bundle(self.timeline).spans() if is_bundle(self.timeline) else read_timeline(self.timeline)

    def run(self) -> int:
        with ProgressView() as view:
            view(Progress("why", "reading the timeline", 0, 1))
            report = report_waits(read_history(self._spans()), self.longest)
        if self.json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
        else:
            sys.stdout.writelines(f"{line}\n" for line in report_lines(report))
        return DONE
