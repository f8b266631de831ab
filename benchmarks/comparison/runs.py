"""Run contenders one after another on the same tokens, under the same limit, several times.

Holds the cases that they run, the comparison itself, and the options and the ending that all comparisons share.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import msgspec
from rich.console import Console

from ..contenders.base import Case, Contender, Missing, Task, TaskResult
from ..contenders.running import Run, run
from ..limits import NoLimit
from ..machine import machine_line
from ..models import held_out_prompts
from .rows import Cell
from .tables import Row, markdown, read_cells, write

PROMPT = 32
CHARACTERS = 400
"""Characters of text, which give more than a prompt's tokens."""
COLD, WARM, PREFILL = "cold", "warm", "prefill"


def random_cases(model: Path, batches: Sequence[int], steps: int) -> list[Case]:
    """Make one case a batch size, of random token ids; the same ones at every call."""
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    rng = random.Random(0)
    return [
        Case(prompts=[[rng.randrange(3, vocabulary) for _ in range(PROMPT)] for _ in range(batch)], steps=steps)
        for batch in batches
    ]


def prefill_cases(model: Path, sizes: Sequence[str], times: int) -> list[Case]:
    """Make one case a size, written as 8x64 for eight prompts of 64 random tokens, to be prefilled so many times."""
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    rng = random.Random(0)
    cases = []
    for rows, tokens in (map(int, size.split("x")) for size in sizes):
        prompts = [[rng.randrange(3, vocabulary) for _ in range(tokens)] for _ in range(rows)]
        cases.append(Case(prompts=prompts, prefills=times, state=f"{PREFILL} {rows} x {tokens}"))
    return cases


def text_cases(model: Path, batches: Sequence[int], cold_steps: int, warm_steps: int) -> list[Case]:
    """Make two cases a batch size, to be run in this order right after a start; the same ones at every call.

    The first one finds a cold engine; the second one, other prompts, a warm one.
    """
    cases = []
    for batch in batches:
        prompts = _text_prompts(model, 2 * batch)
        cases += [
            Case(prompts=prompts[:batch], steps=cold_steps, state=COLD, trial=False),
            Case(prompts=prompts[batch:], steps=warm_steps, state=WARM, trial=False, seed=8),
        ]
    return cases


def _text_prompts(model: Path, count: int) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return [tokenizer.encode(text).ids[:PROMPT] for text in held_out_prompts(count, CHARACTERS)]


Cells = dict[tuple[str, int, int, str], Cell]
"""Results by contender, limit, batch size and state."""
NOT_RUN = "not run"
NO_LIMIT = f"{NOT_RUN}: no memory limit can be enforced here"
TIME_IS_OVER = f"{NOT_RUN}: time is over"


@dataclass(frozen=True)
class Setting:
    """Say what is compared.

    After `minutes` nothing is begun any more; a case ends after `patience_s`, a run is given up after `timeout_s`.
    """

    model: Path
    cases: Sequence[Case]
    patience_s: float
    timeout_s: float
    minutes: float


@dataclass
class Comparison:
    """Keep the results of all runs; the first contender that draws its tokens draws them for all."""

    setting: Setting
    report: Callable[[str], None]
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
            indices = [index for index, case in enumerate(self._cases) if (len(case.prompts), case.state) == cell.case]
            for answer in filter(None, cell.answers):
                self._keep_tokens(indices, [answer.tokens] * len(indices))

    def run(self, contender: Contender, limit_bytes: int = 0, batch: int = 0) -> None:
        """Run a contender once under this limit in bytes (0: none); with `batch` only the cases of that size.

        A contender that cannot run says why in its cells.
        """
        indices = [index for index, case in enumerate(self._cases) if batch in (0, len(case.prompts))]
        cases = [self._cases[index] for index in indices]
        cells = [self._cell(contender, limit_bytes, case) for case in cases]
        if time.monotonic() > self._ends:
            for cell in cells:
                cell.failure = cell.failure if cell.answers else TIME_IS_OVER
            return
        done = self._attempt(contender, limit_bytes, cases)
        self.report(_describe(contender, limit_bytes, batch, done))
        for index, cell in enumerate(cells):
            cell.add(done, index)
        if contender.draws and done.answer:
            self._keep_tokens(indices, _tokens_of(done.answer))

    def _cell(self, contender: Contender, limit_bytes: int, case: Case) -> Cell:
        key = (contender.name, limit_bytes, len(case.prompts), case.state)
        tokens = sum(map(len, case.prompts)) if case.prefills else 0
        return self.cells.setdefault(key, Cell(*key[:3], state=case.state, step_tokens=tokens))

    def _keep_tokens(self, indices: Sequence[int], drawn: Sequence[list[list[int]]]) -> None:
        """Keep the tokens of whoever draws first."""
        for index, tokens in zip(indices, drawn, strict=True):
            if not self._cases[index].tokens:
                self._cases[index] = msgspec.structs.replace(self._cases[index], tokens=tokens)

    def _attempt(self, contender: Contender, limit_bytes: int, cases: list[Case]) -> Run:
        setting = self.setting
        task = Task(model=str(setting.model), cases=cases, limit_bytes=limit_bytes, patience_s=setting.patience_s)
        if not (contender.draws or all(case.tokens or case.prefills for case in cases)):
            return Run(failure="no tokens to force: nobody drew any")
        try:
            return run(contender, task, setting.timeout_s)
        except Missing as missing:
            return Run(failure=str(missing))
        except NoLimit as error:
            return Run(failure=f"{NO_LIMIT}: {error}")


def _tokens_of(answer: TaskResult) -> list[list[list[int]]]:
    return [answered.tokens for answered in answer.cases]


def _describe(contender: Contender, limit_bytes: int, batch: int, done: Run) -> str:
    limit = f"{limit_bytes / 1e9:.2f} GB" if limit_bytes else "no limit"
    cases = f"batch {batch}" if batch else "all batches"
    return f"{contender.name}, {limit}, {cases}: {done.failure or 'done'}"


ASKED_TO_END = 128 + signal.SIGTERM


@contextlib.contextmanager
def ended_by_signal() -> Iterator[None]:
    """Raise SystemExit at SIGTERM: what runs is ended and what was measured is kept."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(ASKED_TO_END)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


TIMEOUT_S = 240.0


def add_options(
    parser: argparse.ArgumentParser, batches: Sequence[int], steps: int, patience_s: float, out: str
) -> None:
    """Add the options that all comparisons have, with these defaults."""
    parser.add_argument("--batches", type=int, nargs="+", default=batches)
    parser.add_argument("--steps", type=int, default=steps, help="decoded tokens of a case")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--patience", type=float, default=patience_s, help="seconds after which a case of a run ends")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds after which a run is given up")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no run begins")
    parser.add_argument("--resume", action="store_true", help="add repeats to those that the file --out has")
    parser.add_argument("--out", type=Path, default=Path(out))


def run_comparison(
    setting: Setting,
    arguments: argparse.Namespace,
    work: Callable[[Comparison], None],
    rows_of: Callable[[Cells], list[Row]],
    title: str,
    notes: Sequence[str],
    picture: bool = True,
) -> None:
    """Compare, and write what there is, also when asked to end."""
    console, machine = Console(stderr=True), machine_line()
    comparison = Comparison(setting, console.print)
    if arguments.resume:
        comparison.resume(read_cells(arguments.out))
    try:
        with ended_by_signal():
            work(comparison)
    finally:
        rows, cells = rows_of(comparison.cells), list(comparison.cells.values())
        how = f"`{_command()}` on {machine}"
        write(rows, cells, arguments.out, title, [*notes, how], picture)
    console.print(markdown(rows), soft_wrap=True)


def _command() -> str:
    """Return the command as it was given, without this machine's folders."""
    module = f"expertflow.benchmarks.{Path(sys.argv[0]).stem}"
    return " ".join(["python -m", module, *(Path(each).name for each in sys.argv[1:])])
