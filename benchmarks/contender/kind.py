"""What the bench must know of a contender."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

CORES = len(os.sched_getaffinity(0))


class Missing(Exception):
    """This contender cannot run here; the message says why."""


class Contender:
    """One of those who are compared; its process reads an `Order` from stdin and prints an `Answer`."""

    name: str
    module: str
    """Of this folder, run with -m."""
    threads: tuple[int, ...] = tuple(sorted({max(1, CORES // 2), CORES}))
    """Thread counts to try."""
    trial_steps = 3
    """With each thread count; they warm up as well. 0: neither is of use."""
    draws = False
    """Whether it draws its tokens; the others are given them."""

    def prepare(self, model: Path) -> None:
        """Whatever is done once and outside the measurement: packages, builds, converted weights. Raises Missing."""

    def command(self, model: Path) -> list[str]:
        return [sys.executable, "-m", f"{__package__}.{self.module}"]

    def files(self, model: Path) -> list[Path]:
        """What it reads while it runs."""
        return sorted(model.glob("*.safetensors"))

    def options(self, limit_bytes: int) -> dict[str, Any]:
        """Of its own, under this limit (0: none)."""
        return {}
