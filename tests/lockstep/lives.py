"""Rows that live together, join, leave and split, and the same rows alone: digests of all their logits, row by row."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import msgspec
from expertflow.ipc.messages import DropPrefix, DropUnit, KeepPrefix, RequestRow, RunStep, Sampling
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.system.schedules import Driver, drive
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.executor import Chooser, sample
from expertflow.workers.compute.recording import digest_rows
from expertflow.workers.kernels.making import TableMaker
from expertflow.workers.surveyor.surveyor import survey_checkpoint, survey_folder

Bits = dict[int, list[bytes]]
"""Row -> the digest of its logits before each of its tokens."""


@dataclass
class RowDigests:
    """A chooser that remembers the bits of all logits, by row; `most` is the most rows that it saw at once."""

    seen: Bits = field(default_factory=dict)
    most: int = 0

    @property
    def choose(self) -> Chooser:
        return self._choose

    def _choose(self, step, unit, logits):  # noqa: ANN001, ANN202 - the signature of Chooser
        self.most = max(self.most, len(unit.numbers))
        for number, index, row in zip(unit.numbers, unit.output_indices, logits, strict=True):
            digests = self.seen.setdefault(number, [])
            assert index == len(digests) or index < len(digests) and digest_rows(row[None]) == digests[index]
            digests[index:] = [digest_rows(row[None])]
        return sample(step, unit, logits)


@cache
def surveyed(folder: Path, dtype: str, kernel: str = "") -> Survey:
    """Return the survey of a model, with one kernel forced if `kernel` names one."""
    if not kernel:
        return survey_checkpoint(str(folder), dtype=dtype)
    return survey_folder(folder, dtype, make_table=TableMaker(kernel, lambda progress: None).make)


@dataclass
class Life:
    """What became of rows that ran together: their prompts and tokens, and the bits of their logits."""

    driver: Driver
    digests: RowDigests

    @property
    def bits(self) -> Bits:
        return self.digests.seen


def live_together(
    survey: Survey, slots: int, batch: int, batch_invariant: bool = True, seed: int = 1, chunk: int = 0
) -> Life:
    """A schedule of joins, leaves and splits with `batch` rows; greedy, as rows that differ would differ for ever."""
    digests = RowDigests()
    with LocalRuntime(survey, slots, choose=digests.choose) as runtime:
        driver = Driver(runtime, survey.vocabulary, batch_invariant=batch_invariant, chunk=chunk)
        drive(driver, batch, seed, equal_lengths=False)
    return Life(driver, digests)


def live_alone(survey: Survey, life: Life, batch_invariant: bool = True, chunk: int = 0) -> Bits:
    """The same prompts one after the other, with every expert resident."""
    digests = RowDigests()
    with LocalRuntime(survey, survey.expert_count, choose=digests.choose) as runtime:
        driver = Driver(runtime, survey.vocabulary, batch_invariant=batch_invariant, chunk=chunk)
        for number, sequence in life.driver.sequences.items():
            driver.prefill(number, [sequence.prompt_ids])
            for _ in sequence.token_ids[1:]:
                driver.decode(number)
    return digests.seen


def live_alone_with_prefixes(survey: Survey, life: Life, chunk: int) -> Bits:
    """The same prompts one after the other in chunks, each beginning with copies of the chunks of the one before."""
    digests = RowDigests()
    with LocalRuntime(survey, survey.expert_count, choose=digests.choose) as runtime:
        for number, sequence in life.driver.sequences.items():
            prompt = sequence.prompt_ids
            cached = (len(prompt) - 1) // chunk * chunk
            blocks = [1000 * number + begin for begin in range(0, cached, chunk)]
            row = RequestRow(number, prompt, 0, Sampling(), chunk=chunk)
            run_alone(runtime, row, unit=1)  # only to be cut
            if blocks:
                runtime.order(KeepPrefix(unit=1, row=number, begin=0, size=chunk, blocks=blocks))
            runtime.order(DropUnit(1))
            digests.seen.pop(number)
            run_alone(runtime, msgspec.structs.replace(row, cached=cached, blocks=blocks), unit=2)
            for _ in sequence.token_ids[1:]:
                runtime.run(RunStep(number=0, unit=2, batch_invariant=True))
            runtime.order(DropUnit(2))
            runtime.order(DropPrefix(blocks))
    return digests.seen


def run_alone(runtime: LocalRuntime, row: RequestRow, unit: int) -> None:
    """The prefill of a row, chunk by chunk."""
    runtime.run(RunStep(number=0, unit=unit, admit=[row], batch_invariant=True))
    for _ in range(row.cached + row.chunk, len(row.token_ids), row.chunk):
        runtime.run(RunStep(number=0, unit=unit, continues=True, batch_invariant=True))


def differing(bits: Bits, others: Bits) -> list[tuple[int, int]]:
    """(row, output index) of all logits with other bits."""
    assert bits.keys() == others.keys()
    return [
        (row, index)
        for row in bits
        for index, (one, other) in enumerate(zip(bits[row], others[row], strict=True))
        if one != other
    ]
