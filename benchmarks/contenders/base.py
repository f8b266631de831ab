"""Describe a contender, the task that it is given, and the result that it writes (JSON over stdin and stdout).

A case is a batch of prompts of equal length, prefilled together, then decoded a token a step. The first contender draws
its tokens; the others get them, so that all run the same ones.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec

CORES = len(os.sched_getaffinity(0))


class Missing(Exception):
    """Say that and why a contender cannot run here."""


class Contender:
    """Describe one contender; its process reads a `Task` from stdin and writes a `TaskResult`."""

    name: str
    module: str
    """Module of this folder, run with -m."""
    threads: tuple[int, ...] = tuple(sorted({max(1, CORES // 2), CORES}))
    """Thread counts to try."""
    trial_steps = 3
    """With each thread count; they warm up as well. 0: neither is of use."""
    draws = False
    """True if it draws its tokens; the others are given them."""

    def prepare(self, model: Path) -> None:
        """Do what is done once and outside the measurement: packages, builds, converted weights. Raises Missing."""

    def command(self, model: Path) -> list[str]:
        """Return the command that runs this model."""
        return [sys.executable, "-m", f"{__package__}.{self.module}"]

    def files(self, model: Path) -> list[Path]:
        """Return the files that it reads while it runs."""
        return sorted(model.glob("*.safetensors"))

    def options(self, limit_bytes: int) -> dict[str, Any]:
        """Return its own options under this limit in bytes (0: none)."""
        return {}

    def environment(self) -> dict[str, str]:
        """Return the variables that its process has on top of ours."""
        return {}


FEW_STEPS = 4


class Case(msgspec.Struct, kw_only=True):
    """Hold a batch: `prompts` [rows][prompt]; `tokens` [rows][steps], empty: draw `steps` a row at temperature 1."""

    prompts: list[list[int]]
    tokens: list[list[int]] = []
    steps: int = 32
    seed: int = 7
    state: str = ""
    """`cold` or `warm`, where both are measured: a name for the tables."""
    prefills: int = 0
    """Not 0: prefill the prompts so often and decode nothing; what is a step elsewhere is then a prefill."""
    trial: bool = True
    """True if a few steps of it come first, untimed; without them it runs on what was there before it."""


class Task(msgspec.Struct, kw_only=True):
    """Say what a contender runs, and how."""

    model: str
    cases: list[Case]
    threads: list[int] = []
    """Thread counts to try; the one that takes least time is kept."""
    trial_steps: int = 3
    patience_s: float = 60.0
    """Seconds after which a case ends, once it has a few steps."""
    limit_bytes: int = 0
    """The enforced limit; 0: none."""
    options: dict[str, Any] = {}
    """Options of this contender alone."""


class CaseResult(msgspec.Struct, kw_only=True):
    """Hold the seconds to the first token of all rows, and of every step after it (of every prefill, where `prefills`
    are asked for)."""

    first_s: float
    steps_s: list[float]
    tokens: list[list[int]] = []
    """Drawn ones [rows][steps]."""
    choices: list[list[int]] = []
    """Without drawing: the likeliest token [steps][rows] after the prompt and each forced token."""
    facts: dict[str, float] = {}
    """Whatever else it knows of itself."""


class TaskResult(msgspec.Struct, kw_only=True):
    """Hold the seconds until the contender was ready, and what each case gave."""

    ready_s: float
    cases: list[CaseResult]


def read_task() -> Task:
    """Read the task from stdin."""
    return msgspec.json.decode(sys.stdin.buffer.read(), type=Task)


def write_result(result: TaskResult) -> None:
    """Write the result as the last line of stdout."""
    sys.stdout.write("\n" + msgspec.json.encode(result).decode() + "\n")
