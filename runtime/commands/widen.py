"""`expertflow widen`: makes a small model big without changing what it computes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from msgspec import Meta

from ...ipc.messages import Progress
from ..command_line.base import DONE, Command
from ..monitor.progress import ProgressView
from ..monitor.tables import result_console


@dataclass(frozen=True, kw_only=True)
class Widen(Command):
    """Write a copy of a small model with experts FACTOR times as big that computes the same function.

    Text and routing stay real while the experts take real memory. For demonstrations and measurements.
    """

    source: tyro.conf.Positional[Path]
    """Model folder with separate experts (gate_proj, up_proj and down_proj), such as Qwen3-MoE or OLMoE."""
    destination: tyro.conf.Positional[Path]
    """Folder to write; it must not exist."""
    factor: Annotated[int, Meta(ge=1, le=2**16)] = 64
    """Factor of the width of an expert; a power of two."""

    def run(self) -> int:
        with ProgressView() as view:
            view(Progress("widen", "starting", 0, 1))
            self._widen(view)
        result_console().print(f"{self.destination}: {self.source} widened {self.factor} times")
        return DONE

    def _widen(self, view: ProgressView) -> None:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from ...workers.checkpoint.widen import widen

        view(Progress("widen", "starting", 1, 1))
        widen(self.source, self.destination, self.factor, lambda *state: view(Progress("widen", *state)))
