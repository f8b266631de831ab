"""Contenders one after another on the same tokens, under the same limit, several times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ..contender.kind import Contender, Missing
from ..contender.order import Answer, Case, Order
from ..contender.running import Run, run
from ..enforced.memory_group import NoLimit
from .rows import Cell

Cells = dict[tuple[str, int, int, str], Cell]
"""By contender, limit, batch size and state."""
NOT_RUN = "not run"
NO_LIMIT = f"{NOT_RUN}: no memory limit can be enforced here"
TIME_IS_OVER = f"{NOT_RUN}: time is over"


@dataclass(frozen=True)
class Setting:
    """What is compared. After `minutes` nothing is begun any more; a case ends after `patience_s`, a run is given up
    after `timeout_s`."""

    model: Path
    cases: Sequence[Case]
    patience_s: float
    timeout_s: float
    minutes: float


@dataclass
class Comparison:
    """The first contender that draws its tokens draws those of all others."""

    setting: Setting
    say: Callable[[str], None]
    cells: Cells = field(default_factory=dict)
    _cases: list[Case] = field(default_factory=list)
    _ends: float = 0.0

    def __post_init__(self) -> None:
        self._cases = list(self.setting.cases)
        self._ends = time.monotonic() + 60 * self.setting.minutes

    def resume(self, earlier: Sequence[Cell]) -> None:
        """Go on with the cells of an earlier comparison of the same setting."""
        done = [cell for cell in earlier if cell.answers]
        self.cells = {(cell.contender, cell.limit_bytes, cell.batch, cell.state): cell for cell in done}
        for cell in done:
            places = [p for p, case in enumerate(self._cases) if (len(case.prompts), case.state) == cell.case]
            for answer in filter(None, cell.answers):
                self._keep_tokens(places, [answer.tokens] * len(places))

    def run(self, contender: Contender, limit_bytes: int = 0, batch: int = 0) -> None:
        """Once, under this limit; with `batch` only the cases of that size. A contender that cannot run says why in its
        cells."""
        places = [p for p, case in enumerate(self._cases) if batch in (0, len(case.prompts))]
        cases = [self._cases[place] for place in places]
        cells = [self._cell(contender, limit_bytes, case) for case in cases]
        if time.monotonic() > self._ends:
            for cell in cells:
                cell.failure = cell.failure if cell.answers else TIME_IS_OVER
            return
        done = self._attempt(contender, limit_bytes, cases)
        self.say(_told(contender, limit_bytes, batch, done))
        for index, cell in enumerate(cells):
            cell.add(done, index)
        if contender.draws and done.answer:
            self._keep_tokens(places, _drawn(done.answer))

    def _cell(self, contender: Contender, limit_bytes: int, case: Case) -> Cell:
        key = (contender.name, limit_bytes, len(case.prompts), case.state)
        return self.cells.setdefault(key, Cell(*key[:3], state=case.state))

    def _keep_tokens(self, places: Sequence[int], drawn: Sequence[list[list[int]]]) -> None:
        """Whoever draws first."""
        for place, tokens in zip(places, drawn, strict=True):
            if not self._cases[place].tokens:
                self._cases[place] = msgspec.structs.replace(self._cases[place], tokens=tokens)

    def _attempt(self, contender: Contender, limit_bytes: int, cases: list[Case]) -> Run:
        setting = self.setting
        order = Order(model=str(setting.model), cases=cases, limit_bytes=limit_bytes, patience_s=setting.patience_s)
        if not (contender.draws or all(case.tokens for case in cases)):
            return Run(failure="no tokens to force: nobody drew any")
        try:
            return run(contender, order, setting.timeout_s)
        except Missing as missing:
            return Run(failure=str(missing))
        except NoLimit as error:
            return Run(failure=f"{NO_LIMIT}: {error}")


def _drawn(answer: Answer) -> list[list[list[int]]]:
    return [answered.tokens for answered in answer.cases]


def _told(contender: Contender, limit_bytes: int, batch: int, done: Run) -> str:
    limit = f"{limit_bytes / 1e9:.2f} GB" if limit_bytes else "no limit"
    cases = f"batch {batch}" if batch else "all batches"
    return f"{contender.name}, {limit}, {cases}: {done.failure or 'done'}"
