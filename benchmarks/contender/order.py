"""What a contender is told, and what it answers: JSON over stdin and the last line of stdout.

A case is a batch of prompts of equal length, prefilled together, then decoded a token a step. The first contender draws
its tokens; the others get them, so that all run the same ones.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

FEW_STEPS = 4


class Case(msgspec.Struct, kw_only=True):
    """`prompts` [rows][prompt]; `tokens` [rows][steps], empty: draw them at temperature 1, `steps` of them a row."""

    prompts: list[list[int]]
    tokens: list[list[int]] = []
    steps: int = 32
    seed: int = 7
    state: str = ""
    """`cold` or `warm`, where both are measured: a name for the tables."""
    trial: bool = True
    """Whether a few steps of it come first, untimed; without them it runs on what was there before it."""


class Order(msgspec.Struct, kw_only=True):
    model: str
    cases: list[Case]
    threads: list[int] = []
    """Thread counts to try; the one that takes least time is kept."""
    trial_steps: int = 3
    patience_s: float = 60.0
    """After which a case ends, once it has a few steps."""
    limit_bytes: int = 0
    """The enforced limit; 0: none."""
    options: dict[str, Any] = {}
    """Of this contender alone."""


class Answered(msgspec.Struct, kw_only=True):
    """Of a case: seconds to the first token of all rows, and of every step after it."""

    first_s: float
    steps_s: list[float]
    tokens: list[list[int]] = []
    """Drawn ones [rows][steps]."""
    choices: list[list[int]] = []
    """Without drawing: the likeliest token [steps][rows] after the prompt and each forced token."""
    facts: dict[str, float] = {}
    """Whatever else it knows of itself."""


class Answer(msgspec.Struct, kw_only=True):
    ready_s: float
    cases: list[Answered]


def read_order() -> Order:
    return msgspec.json.decode(sys.stdin.buffer.read(), type=Order)


def give(answer: Answer) -> None:
    sys.stdout.write("\n" + msgspec.json.encode(answer).decode() + "\n")
