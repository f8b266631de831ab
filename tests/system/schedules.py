"""Random but reproducible sequences of steps: prefills, joins, leaves, splits. The same seed gives the same batches."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from expertflow.ipc.messages import PredictStep, RequestRow, RunStep, Sampling, Split
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.workers.compute.executor import Chooser, sample
from expertflow.workers.compute.recording import digest_rows


@dataclass
class Sequence:
    """One row as the caller sees it."""

    prompt_ids: list[int]
    token_ids: list[int] = field(default_factory=list)


@dataclass
class Driver:
    """Drives a runtime through a schedule and keeps what came of it: digests of all logits, and every sequence's
    tokens."""

    runtime: LocalRuntime
    vocabulary: int
    sequences: dict[int, Sequence] = field(default_factory=dict)
    units: dict[int, list[int]] = field(default_factory=dict)
    steps: int = 0
    batch_invariant: bool = False
    temperature: float = 0.0
    chunk: int = 0
    """Most positions of a step that prefills a row alone."""
    _filled: dict[int, int] = field(default_factory=dict)

    def prefill(self, unit: int, prompts: list[list[int]]) -> None:
        rows = []
        for prompt in prompts:
            number = len(self.sequences)
            self.sequences[number] = Sequence(prompt)
            rows.append(RequestRow(number, prompt, 0, Sampling(self.temperature), chunk=self.chunk))
        self.units[unit] = [row.number for row in rows]
        self._run(RunStep(number=self.steps, unit=unit, admit=rows, batch_invariant=self.batch_invariant))
        (chunk, length) = (self.chunk, len(prompts[0])) if len(prompts) == 1 else (0, 0)
        for _ in range(chunk, length, chunk) if chunk else ():
            self._run(RunStep(number=self.steps, unit=unit, continues=True, batch_invariant=self.batch_invariant))

    def decode(self, unit: int, drop: list[int] | None = None, join: list[int] | None = None) -> None:
        for other in join or []:
            self.units[unit] = self.units[unit] + self.units.pop(other)
        self.units[unit] = [row for row in self.units[unit] if row not in (drop or [])]
        invariant = self.batch_invariant
        self._run(RunStep(number=self.steps, unit=unit, drop=drop or [], join=join or [], batch_invariant=invariant))

    def split(self, unit: int, into: int, rows: list[int]) -> None:
        self.runtime.order(Split(unit, rows, into))
        self.units[into] = rows
        self.units[unit] = [row for row in self.units[unit] if row not in rows]

    def _run(self, step: RunStep) -> None:
        self.steps += 1
        stepped, _ = self.runtime.run(step, self._coming(step))
        assert not stepped.failed, stepped.failed
        for row, token in zip(stepped.rows, stepped.tokens, strict=True):
            self.sequences[row].token_ids.append(token)

    def _coming(self, step: RunStep) -> PredictStep:
        entries: list[tuple[int, int, int]] = []
        for number in self.units[step.unit]:
            sequence = self.sequences[number]
            whole = sequence.prompt_ids + sequence.token_ids
            first = 0 if step.admit else self._filled.get(number, 0) if step.continues else len(whole) - 1
            alone = self.chunk if len(self.units[step.unit]) == 1 and (step.admit or step.continues) else 0
            self._filled[number] = last = min(len(whole), first + alone) if alone else len(whole)
            entries += [(whole[at], number, at) for at in range(first, last)]
        ids, rows, positions = (list(column) for column in zip(*entries, strict=True))
        return PredictStep(step=step.number, token_ids=ids, rows=rows, positions=positions)


def drive(driver: Driver, batch: int, seed: int, equal_lengths: bool = False) -> None:
    """A schedule with `batch` sequences at most at a time: two prefills, joins, leaves, a split and a second join."""
    rng = random.Random(seed)

    def prompts(count: int) -> list[list[int]]:
        length = rng.randint(2, 14)
        lengths = [length if equal_lengths else rng.randint(1, 14) for _ in range(count)]
        return [[rng.randrange(driver.vocabulary) for _ in range(each)] for each in lengths]

    first = max(1, batch - batch // 3)
    driver.prefill(1, prompts(first))
    driver.decode(1)
    if batch > first:
        driver.prefill(2, prompts(batch - first))
        driver.decode(1, join=[2])
    driver.decode(1)
    if batch > 1:
        leaving = rng.sample(driver.units[1], 1 + len(driver.units[1]) // 3)
        driver.decode(1, drop=leaving[: batch - 1])
    if len(driver.units[1]) > 2:
        driver.split(1, 3, driver.units[1][::2])
        driver.decode(1)
        driver.decode(3)
        driver.decode(3, join=[1])
    else:
        driver.decode(1)


class Digests:
    """A chooser that remembers the bits of all logits it sees."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.choose: Chooser = self._choose

    def _choose(self, step, unit, logits):  # noqa: ANN001, ANN202 - the signature of Chooser
        self.seen.append(digest_rows(logits))
        return sample(step, unit, logits)
