"""The checks of a recording: invariants I1a to I1d (docs/architecture.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import torch

from ...ipc.messages import NEUTRAL, RunStep
from ...ipc.shared.attachments import FOLDER
from ...workers.checkpoint.survey import Survey
from ...workers.compute.device import open_device
from ...workers.compute.recording import read_steps, recorded_kernels
from ...workers.model.unit import RowAbilities
from ...workers.packed.choice import ExpertsIn
from ...workers.surveyor.surveyor import survey_checkpoint
from .alone import first_difference, has_invariant_rows, recorded_rows
from .error_ratio import compare_errors
from .reference import ReferenceProcessors, Sequence, reference_logits
from .replay import ReplayedStep, count_steps, free_memory, replay
from .report import ALONE, BFLOAT16, CHOSEN, FLOAT32, RESIDENT, Check

LOGIT_TOLERANCE = 1e-4
TIE_NOISES = 10
TIE_SHARE = 0.005

_Reported = TypeVar("_Reported")
Report = Callable[[str, int, int], None]
"""Called with the work, the number of parts done, and the number of all parts."""


class Verification:
    """The checks of one recording. `limit`: sequences compared with transformers (all are compared bit by bit).

    `device`: where it was recorded and is replayed; bits of two devices are not compared. The float32 reference runs on
    the CPU, the bfloat16 reference on that device, whose kernels have rounding errors of their own.
    """

    def __init__(
        self,
        folder: Path,
        model: str,
        revision: str = "",
        dtype: str = "auto",
        limit: int = 32,
        device: str = "cpu",
        generation_settings: str = "honour",
        experts_in: ExpertsIn = "dequantised",
        report: Report = lambda what, done, total: None,
    ) -> None:
        self._generation_settings = generation_settings
        self._folder, self._model, self._revision, self._limit = folder, model, revision, limit
        self._report = report
        self._device = open_device(device)
        survey = survey_checkpoint(model, revision, dtype, generation_settings, experts_in)
        self._survey = msgspec.structs.replace(survey, kernels=recorded_kernels(folder))
        own = self._survey.settings != NEUTRAL
        self._processors = ReferenceProcessors(Path(self._survey.folder)) if own else None
        self._abilities = RowAbilities.of(self._survey.rows)

    def resident(self) -> Check:
        """Check I1a: the logits of every recorded step have the same bits when all experts are resident."""
        steps = rows = 0
        for step in self._replay(self._survey, "everything resident"):
            if differing := step.differing_rows():
                index = step.rows.index(differing[0])
                at = f"step {step.recorded.number}, row {differing[0]}, output {step.output_indices[index]}"
                detail = f"first difference: {at}"
                return Check(claim=RESIDENT, holds=False, detail=detail)
            steps, rows = steps + 1, rows + len(step.rows)
        where = "" if self._device is None else f" on {self._device.name}"
        return Check(claim=RESIDENT, holds=True, detail=f"{steps} steps, {rows} rows of logits compared{where}")

    def alone(self) -> Check | None:
        """Check I1d: the logits of every batch-invariant row have the same bits alone. None if there is no such row."""
        rows = recorded_rows(self._folder, self._replay(self._survey, "everything resident, to find rows"))
        if not rows:
            return None
        reported = self._report_each(rows, "batch-invariant rows alone")
        if (differing := first_difference(self._folder, reported, self._survey, self._abilities)) is not None:
            detail = "first difference: row {}, output {}".format(*differing)
            return Check(claim=ALONE, holds=False, detail=detail)
        logits, together = sum(len(row.tokens) for row in rows), 1 + max(row.neighbours for row in rows)
        return Check(claim=ALONE, holds=True, detail=f"{len(rows)} rows, {logits} logits, up to {together} together")

    def chosen(self, processors: ReferenceProcessors) -> Check:
        """Check that every greedy token is the likeliest after transformers' processors have changed its logits."""
        tokens = 0
        for number, sequence in enumerate(self._sequences(self._survey.dtype)):
            index = _first_other_choice(sequence, processors)
            if index is not None:
                return Check(claim=CHOSEN, holds=False, detail=f"first difference: sequence {number}, output {index}")
            tokens += len(sequence.token_ids)
        return Check(claim=CHOSEN, holds=True, detail=f"{tokens} tokens")

    def float32(self) -> Check:
        """Check I1b: the same batches in float32 against transformers in float32, each sequence alone."""
        sequences = self._sequences("float32")
        reference = self._reference(torch.float32, sequences)
        pairs = zip(sequences, reference, strict=True)
        comparisons = [compare(sequence, logits, self._processors) for sequence, logits in pairs]
        noise = max(comparison.difference for comparison in comparisons)
        scale = max(comparison.scale for comparison in comparisons)
        mismatches = [comparison for comparison in comparisons if comparison.first_mismatch is not None]
        no_tie = [comparison for comparison in mismatches if comparison.gap >= TIE_NOISES * noise]
        few = len(mismatches) <= TIE_SHARE * len(comparisons)
        holds = not no_tie and noise <= LOGIT_TOLERANCE * scale and few
        tokens = sum(len(sequence.token_ids) for sequence in sequences)
        detail = (
            f"{len(comparisons)} sequences, {tokens} tokens; "
            f"{len(mismatches)} with a certified tie, {len(no_tie)} without; "
        )
        return Check(
            claim=FLOAT32,
            holds=holds,
            detail=detail + f"largest logit difference {noise / scale:.1e} of the largest logit",
        )

    def bfloat16(self) -> Check:
        """Check I1c: our bfloat16 error against float32 is at most 1.25 times that of transformers in bfloat16.

        A nearly undecided router takes another expert by chance, in transformers as often as here. A mean that a few
        such positions lift does not count (`error_ratio`).
        """
        sequences = self._sequences("bfloat16")
        exact = self._reference(torch.float32, sequences)
        where = None if self._device is None else self._device.torch_device
        theirs = self._reference(torch.bfloat16, sequences, where)
        ours = [torch.stack(sequence.logits).float() for sequence in sequences]
        ratio = compare_errors(_errors(ours, exact), _errors(theirs, exact))
        detail = f"{ratio.mean:.2f} times (mean over {len(exact)} sequences), {ratio.median:.2f} in the median position"
        if ratio.by_chance:
            detail += "; a few positions, where a router was nearly undecided, lift the mean: more sequences would tell"
        return Check(claim=BFLOAT16, holds=ratio.holds, detail=detail)

    def checks(self) -> Iterator[Check]:
        """Yield the checks that apply to the dtype of the recording, each as soon as it is done."""
        yield self.resident()
        if has_invariant_rows(self._folder) and (check := self.alone()) is not None:
            yield check
        if self._processors is not None:
            yield self.chosen(self._processors)
        yield self.float32()
        if self._survey.dtype == "bfloat16":
            yield self.bfloat16()

    def _sequences(self, dtype: str) -> list[Sequence]:
        survey = self._survey if self._survey.dtype == dtype else self._survey_in(dtype)
        by_row = _prompts(self._folder, self._limit)
        for step in self._replay(survey, f"everything resident, in {dtype}"):
            tokens = dict(zip(step.recorded.rows, step.recorded.tokens, strict=True))
            for position, (row, index) in enumerate(zip(step.rows, step.output_indices, strict=True)):
                sequence = by_row.get(row)
                if sequence is not None and row in tokens and index == len(sequence.token_ids):
                    sequence.token_ids.append(tokens[row])
                    sequence.logits.append(step.logits[position].clone().cpu())
        return [sequence for sequence in by_row.values() if sequence.token_ids]

    def _replay(self, survey: Survey, how: str) -> Iterator[ReplayedStep]:
        """Yield every recorded step with its replayed logits, and report the progress."""
        total = count_steps(self._folder)
        self._report(f"steps again with {how}", 0, total)
        for done, step in enumerate(replay(self._folder, survey, self._abilities, self._device), start=1):
            yield step
            self._report(f"steps again with {how}", done, total)

    def _report_each(self, sequences: list[_Reported], what: str) -> Iterator[_Reported]:
        """Yield the sequences, and report each when the next one is taken."""
        for done, sequence in enumerate(sequences):
            self._report(what, done, len(sequences))
            yield sequence
        self._report(what, len(sequences), len(sequences))

    def _reference(
        self, dtype: torch.dtype, sequences: list[Sequence], where: torch.device | None = None
    ) -> list[torch.Tensor]:
        free_memory()
        what = f"sequences with transformers in {str(dtype).removeprefix('torch.')}"
        self._report(what, 0, len(sequences))  # loading the model comes before the first
        reported = self._report_each(sequences, what)
        return reference_logits(Path(self._survey.folder), dtype, reported, self._folder / FOLDER, where)

    def _survey_in(self, dtype: str) -> Survey:
        return survey_checkpoint(self._model, self._revision, dtype, self._generation_settings)


def _prompts(folder: Path, limit: int) -> dict[int, Sequence]:
    admitted = (entry for start in read_steps(str(folder)) for entry in start if isinstance(entry, RunStep))
    rows = [row for step in admitted for row in step.admit if not row.generated]
    return {
        row.number: Sequence(row.token_ids, [], [], row.attachment, row.sampling, row.settings) for row in rows[:limit]
    }


def _first_other_choice(sequence: Sequence, processors: ReferenceProcessors) -> int | None:
    """Return the index of the first output token that greedy decoding would not take; None if there is none.

    Drawn tokens are not judged, nor those that a grammar allows: transformers has no processor for it.
    """
    if sequence.sampling.temperature or sequence.sampling.grammar:
        return None
    best = processors.scores(sequence, torch.stack(sequence.logits)).argmax(-1).tolist()
    indices = range(int(sequence.sampling.first_token is not None), len(best))
    return next((index for index in indices if best[index] != sequence.token_ids[index]), None)


class Comparison(msgspec.Struct, frozen=True):
    """A sequence against the reference.

    `gap`: difference of the reference's two best logits at the first position where the best tokens differ.
    """

    difference: float
    scale: float
    first_mismatch: int | None
    gap: float


def compare(sequence: Sequence, reference: torch.Tensor, processors: ReferenceProcessors | None = None) -> Comparison:
    """Compare our logits of a sequence with the reference's, float32 [generated, vocabulary].

    Best tokens are compared after the processors, if given.
    """
    ours = torch.stack(sequence.logits).float()
    our_scores, scores = ours, reference
    if processors is not None:
        our_scores, scores = processors.scores(sequence, ours), processors.scores(sequence, reference)
    mismatches = (our_scores.argmax(-1) != scores.argmax(-1)).nonzero().flatten().tolist()
    gap = 0.0
    if mismatches:
        best = scores[mismatches[0]].topk(2).values
        gap = float(best[0] - best[1])
    difference = float((ours - reference).abs().max())
    return Comparison(difference, float(reference.abs().max()), mismatches[0] if mismatches else None, gap)


def _errors(logits: list[torch.Tensor], exact: list[torch.Tensor]) -> list[np.ndarray]:
    """Return the mean absolute error of each position's logits: float32 [positions] a sequence."""
    pairs = zip(logits, exact, strict=True)
    return [(values - reference).abs().mean(dim=-1).numpy() for values, reference in pairs]
