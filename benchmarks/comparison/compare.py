"""Contenders one after another on the same tokens, under the same limit, several times."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..contender.kind import Contender, Missing
from ..contender.order import Case, Order
from ..contender.running import Run, run
from ..enforced.memory_group import NoLimit
from .rows import Cell

PROMPT = 32


@dataclass(frozen=True)
class Setting:
    """What is compared; `vocabulary`: prompts are random ids of it."""

    model: Path
    vocabulary: int
    batches: Sequence[int]
    steps: int
    repeats: int
    patience_s: float
    timeout_s: float


def cases(setting: Setting) -> list[Case]:
    """The same ones at every call; tokens are drawn by the first contender."""
    rng = random.Random(0)
    return [
        Case(prompts=[[rng.randrange(3, setting.vocabulary) for _ in range(PROMPT)] for _ in range(batch)],
             steps=setting.steps)
        for batch in setting.batches
    ]  # fmt: skip


def compare(
    setting: Setting, contenders: Sequence[Contender], limit_bytes: int, say: Callable[[str], None]
) -> list[Cell]:
    """Cells of all contenders at all batch sizes. The first contender draws the tokens.

    Raises NoLimit where the limit cannot be enforced.
    """
    orders = cases(setting)
    cells = {
        (each.name, batch): Cell(each.name, limit_bytes, batch) for each in contenders for batch in setting.batches
    }
    for repeat in range(setting.repeats):
        for contender in contenders:
            done = _attempt(contender, Order(
                model=str(setting.model), cases=orders, limit_bytes=limit_bytes, patience_s=setting.patience_s
            ), setting.timeout_s)  # fmt: skip
            say(f"{contender.name}, {limit_bytes / 1e9:.2f} GB, run {repeat + 1}: {done.failure or 'done'}")
            for index, batch in enumerate(setting.batches):
                cells[contender.name, batch].add(done, index)
            if contender.draws and done.answer:
                drawn = [answered.tokens for answered in done.answer.cases]
                orders = [
                    Case(prompts=case.prompts, tokens=tokens, steps=case.steps)
                    for case, tokens in zip(orders, drawn, strict=True)
                ]
    return list(cells.values())


def _attempt(contender: Contender, order: Order, timeout_s: float) -> Run:
    try:
        return run(contender, order, timeout_s)
    except Missing as missing:
        return Run(failure=str(missing))


__all__ = ["NoLimit", "Setting", "cases", "compare"]
