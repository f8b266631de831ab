"""Contenders one after another on the same tokens, under the same limit, several times."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ..contender.kind import Contender, Missing
from ..contender.order import Case, Order
from ..contender.running import Run, run
from .rows import Cell

PROMPT = 32


@dataclass(frozen=True)
class Setting:
    """What is compared; `vocabulary`: prompts are random ids of it."""

    model: Path
    vocabulary: int
    batches: Sequence[int]
    steps: int
    patience_s: float
    timeout_s: float


@dataclass
class Comparison:
    """Cells by contender, limit and batch size. The first contender that draws its tokens draws those of all others."""

    setting: Setting
    say: Callable[[str], None]
    cells: dict[tuple[str, int, int], Cell] = field(default_factory=dict)
    _cases: list[Case] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._cases = cases(self.setting)

    def resume(self, earlier: Sequence[Cell]) -> None:
        """Go on with the cells of an earlier comparison with the same setting."""
        self.cells = {(cell.contender, cell.limit_bytes, cell.batch): cell for cell in earlier}
        for index, batch in enumerate(self.setting.batches):
            answers = [answer for cell in earlier if cell.batch == batch for answer in cell.answers if answer]
            tokens = next((answer.tokens for answer in answers if answer.tokens), [])
            self._cases[index] = msgspec.structs.replace(self._cases[index], tokens=tokens)

    def run(self, contender: Contender, limit_bytes: int = 0) -> None:
        """Once, under this limit. Raises NoLimit where it cannot be enforced."""
        done = self._attempt(contender, limit_bytes)
        limit = f"{limit_bytes / 1e9:.2f} GB" if limit_bytes else "no limit"
        self.say(f"{contender.name}, {limit}: {done.failure or 'done'}")
        for index, batch in enumerate(self.setting.batches):
            key = (contender.name, limit_bytes, batch)
            self.cells.setdefault(key, Cell(*key)).add(done, index)
        if contender.draws and done.answer and not self._cases[0].tokens:
            drawn = [answered.tokens for answered in done.answer.cases]
            pairs = zip(self._cases, drawn, strict=True)
            self._cases = [msgspec.structs.replace(case, tokens=tokens) for case, tokens in pairs]

    def _attempt(self, contender: Contender, limit_bytes: int) -> Run:
        setting = self.setting
        order = Order(
            model=str(setting.model), cases=self._cases, limit_bytes=limit_bytes, patience_s=setting.patience_s
        )
        if not (contender.draws or self._cases[0].tokens):
            return Run(failure="no tokens to force: nobody drew any")
        try:
            return run(contender, order, setting.timeout_s)
        except Missing as missing:
            return Run(failure=str(missing))


def cases(setting: Setting) -> list[Case]:
    """The same ones at every call, without tokens yet."""
    rng = random.Random(0)
    return [
        Case(
            prompts=[[rng.randrange(3, setting.vocabulary) for _ in range(PROMPT)] for _ in range(batch)],
            steps=setting.steps,
        )
        for batch in setting.batches
    ]
