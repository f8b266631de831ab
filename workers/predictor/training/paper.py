"""Trains the paper's transformer, as its release does: batches of 16, the prompt cut at random."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

import msgspec
import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from ...traces.trace import Trace
from ..base.forecaster import Forecaster
from ..base.predictor_file import Header
from ..base.training_end import TrainingEnd
from ..judging.report import Report
from ..t5.file import KIND, T5File, write_paper
from ..t5.forecaster import T5Forecaster
from ..t5.module import T5Module, padded
from ..t5.shape import FIRST, PAD, UNKNOWN, T5Shape
from .grouping import grouped
from .loop import Effort, ReportProgress, Training

HEAD_RATE, BODY_RATE = 3e-3, 1.5e-3
"""Three times the paper's, which was meant for 30,000 sequences."""
WEIGHT_DECAY = 0.01
SEQUENCES_AT_ONCE = 16
TOKENS_AT_ONCE = 2048
"""With padding, for encoder and decoder each."""
SHORTEST_PROMPT = 0.2
"""Share of the sequence."""
FORGOTTEN = 0.05
"""Share of the tokens that are shown as unknown, so that unknown tokens mean something."""
DEVELOPMENT_SHARE = 0.08
MAX_DEVELOPED = 60


def train_paper(trace: Trace, effort: Effort, tell: ReportProgress, shape: T5Shape | None = None) -> T5File:
    """Return the predictor of `learn_paper` alone."""
    return learn_paper(trace, effort, tell, shape)[0]


def learn_paper(
    trace: Trace, effort: Effort, tell: ReportProgress, shape: T5Shape | None = None
) -> tuple[T5File, TrainingEnd]:
    """A predictor that learned from the sequences of `trace`; `shape` has room for its distinct tokens."""
    torch.set_num_threads(effort.threads)
    torch.manual_seed(effort.seed)
    names, ids = np.unique(trace.token_ids, return_inverse=True)
    shape = shape or T5Shape(
        layers=trace.layers, experts=trace.expert_count, top_k=trace.top_k, vocabulary=FIRST + len(names)
    )
    module = T5Module(shape)
    lesson = _PaperLesson(module, trace, ids.astype(np.int64) + FIRST, effort.seed)
    end = Training(module, lesson, _groups(module), effort, tell).run()
    weights = {name: value.numpy().copy() for name, value in module.state_dict().items()}
    tokens = names if trace.vocabulary is None else np.array(trace.vocabulary)[names]
    return T5File(Header(kind=KIND, model=trace.model, shape=shape), weights, tokens), end


def _groups(module: T5Module) -> list[dict[str, object]]:
    parts = {HEAD_RATE: module.head, BODY_RATE: module.transformer}
    return [
        {"params": list(part.parameters()), "lr": rate, "weight_decay": WEIGHT_DECAY} for rate, part in parts.items()
    ]


@dataclass(frozen=True)
class _Sheet:
    """A batch: what the encoder and the decoder read, and where the decoder's tokens stand in the trace."""

    prompts: Tensor
    known: Tensor
    places: np.ndarray
    """int64 [tokens]: of all that is not padding, in order."""


class _PaperLesson:
    """Binary cross-entropy over all experts of all layers, for the tokens that the decoder reads."""

    def __init__(self, module: T5Module, trace: Trace, numbers: np.ndarray, seed: int) -> None:
        self._module, self._trace, self._numbers = module, trace, numbers
        self._rng = np.random.default_rng(seed)
        order = self._rng.permutation(np.flatnonzero(np.diff(trace.offsets) > 1))
        aside = min(max(round(len(order) * DEVELOPMENT_SHARE), 1), MAX_DEVELOPED)
        self._learned = order[aside:]
        self._development = [self._sheet(group, self._rng) for group in self._groups(order[:aside])]

    def steps_of_epoch(self) -> int:
        return sum(1 for _ in self._groups(self._learned))

    def _groups(self, sequences: np.ndarray) -> Iterator[np.ndarray]:
        lengths = np.minimum(np.diff(self._trace.offsets)[sequences], self._module.shape.window)
        for group in grouped(lengths.tolist(), TOKENS_AT_ONCE, SEQUENCES_AT_ONCE, self._rng):
            yield sequences[group]

    def batches(self) -> Iterator[_Sheet]:
        for group in self._groups(self._learned):
            sheet = self._sheet(group, self._rng)
            forgotten = torch.from_numpy(self._rng.random(tuple(sheet.known.shape)) < FORGOTTEN)
            yield replace(sheet, known=torch.where(forgotten & (sheet.known != PAD), UNKNOWN, sheet.known))

    def judged(self) -> Iterator[tuple[_Sheet, int]]:
        for sheet in self._development:
            yield sheet, len(sheet.places)

    def loss(self, batch: _Sheet) -> Tensor:
        logits = self._module(batch.prompts, batch.known)
        routes = torch.from_numpy(self._trace.routes[batch.places].astype(np.int64))
        chosen = logits[batch.known != PAD].float()
        return functional.binary_cross_entropy_with_logits(chosen, torch.zeros_like(chosen).scatter_(2, routes, 1.0))

    def _sheet(self, sequences: np.ndarray, rng: np.random.Generator) -> _Sheet:
        prompts: list[list[int]] = []
        known: list[np.ndarray] = []
        for sequence in sequences.tolist():
            prompt, read = self._cut(sequence, rng)
            prompts.append(self._numbers[prompt].tolist())
            known.append(read)
        return _Sheet(padded(prompts), padded([self._numbers[read].tolist() for read in known]), np.concatenate(known))

    def _cut(self, sequence: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Places that the encoder reads, and those that the decoder reads: the prompt, or what came after it."""
        begin, end = self._trace.offsets[sequence : sequence + 2].tolist()
        cut = self._end_of_prompt(begin, end, rng)
        window = self._module.shape.window
        prompt = np.arange(max(begin, cut - window), cut)
        decoding = cut < end and rng.random() < 0.5
        return prompt, np.arange(cut, min(end, cut + window)) if decoding else prompt

    def _end_of_prompt(self, begin: int, end: int, rng: np.random.Generator) -> int:
        """Where decoding began, if the trace tells, else somewhere."""
        decoded = None if self._trace.decoded is None else np.flatnonzero(self._trace.decoded[begin:end])
        if decoded is not None and len(decoded) and decoded[0]:
            return begin + int(decoded[0])
        return begin + max(1, round((end - begin) * rng.uniform(SHORTEST_PROMPT, 1.0)))


@dataclass(frozen=True)
class TrainedPaper:
    """The paper's transformer, just trained."""

    file: T5File
    adapts: bool = False
    end: TrainingEnd | None = None

    def forecaster(self, vocabulary: list[str] | None, adapts: bool = True) -> Forecaster:
        """`vocabulary` are the strings of the token ids that it will be asked for. It learns nothing new."""
        return T5Forecaster(self.file, None if vocabulary is None else vocabulary.__getitem__)

    def write(self, file: FilePath, figures: Report) -> Report:
        """Writes it with its figures; returns them with the size of the file."""
        header = msgspec.structs.replace(self.file.header, figures=figures.main_figures())
        write_paper(file, replace(self.file, header=header))
        return msgspec.structs.replace(figures, file_bytes=file.stat().st_size)

    def save(self, file: FilePath) -> None:
        """Writes it before it is judged."""
        write_paper(file, self.file)
