"""Trains the paper's transformer, as its release does: batches of 16, the prompt cut at random."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

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
from ..t5.file import FIRST, KIND, PAD, UNKNOWN, T5File, T5Shape, write_t5
from ..t5.forecaster import T5Forecaster
from ..t5.module import T5Module, pad
from .loop import Effort, ReportProgress, Training, group_by_length

HEAD_RATE, BODY_RATE = 3e-3, 1.5e-3
"""Three times the paper's, which was meant for 30,000 sequences."""
WEIGHT_DECAY = 0.01
BATCH_SEQUENCES = 16
BATCH_TOKENS = 2048
"""Most tokens of a batch with padding, for encoder and decoder each."""
MIN_PROMPT = 0.2
"""Smallest share of the sequence that is taken as its prompt."""
UNKNOWN_SHARE = 0.05
"""Share of the tokens that are shown as unknown, so that the embedding of unknown tokens is trained."""
DEVELOPMENT_SHARE = 0.08
MAX_DEVELOPMENT_SEQUENCES = 60


@dataclass(frozen=True)
class TrainedT5:
    """The paper's transformer, just trained; see `Trained`."""

    file: T5File
    adapts: bool = False
    end: TrainingEnd | None = None

    def forecaster(self, vocabulary: list[str] | None, adapts: bool = True) -> Forecaster:
        """Return a fresh forecaster, which never goes on learning.

        `vocabulary` has the strings of the token ids that it will be given.
        """
        return T5Forecaster(self.file, None if vocabulary is None else vocabulary.__getitem__)

    def write(self, file: Path, figures: Report) -> Report:
        """Write the predictor with its figures; return the figures with the size of the file."""
        header = msgspec.structs.replace(self.file.header, figures=figures.main_figures())
        write_t5(file, replace(self.file, header=header))
        return msgspec.structs.replace(figures, file_bytes=file.stat().st_size)

    def save(self, file: Path) -> None:
        """Write the predictor, before it is judged."""
        write_t5(file, self.file)


def train_t5(trace: Trace, effort: Effort, report_progress: ReportProgress, shape: T5Shape | None = None) -> TrainedT5:
    """Train on the sequences of `trace`; `shape` has room for its distinct tokens.

    Raise UsageError if no sequence is left to learn from.
    """
    torch.set_num_threads(effort.threads)
    torch.manual_seed(effort.seed)
    names, ids = np.unique(trace.token_ids, return_inverse=True)
    shape = shape or T5Shape(
        layers=trace.layers, experts=trace.expert_count, top_k=trace.top_k, vocabulary=FIRST + len(names)
    )
    module = T5Module(shape)
    data = _T5Data(module, trace, ids.astype(np.int64) + FIRST, effort.seed)
    end = Training(module, data, _parameter_groups(module), effort, report_progress).run()
    weights = {name: value.numpy().copy() for name, value in module.state_dict().items()}
    tokens = names if trace.vocabulary is None else np.array(trace.vocabulary)[names]
    return TrainedT5(T5File(Header(kind=KIND, model=trace.model, shape=shape), weights, tokens), end=end)


def _parameter_groups(module: T5Module) -> list[dict[str, object]]:
    parts = {HEAD_RATE: module.head, BODY_RATE: module.transformer}
    return [
        {"params": list(part.parameters()), "lr": rate, "weight_decay": WEIGHT_DECAY} for rate, part in parts.items()
    ]


@dataclass(frozen=True)
class _Batch:
    """Input ids for encoder and decoder, and the decoder's tokens in the trace."""

    prompts: Tensor
    """int64 [B, P], padded right."""
    known: Tensor
    """int64 [B, T], padded right."""
    indices: np.ndarray
    """int64 [tokens]: index in the trace of every token of `known` that is no padding, in order."""


class _T5Data:
    """Batches with binary cross-entropy over all experts of all layers, for the tokens that the decoder reads."""

    def __init__(self, module: T5Module, trace: Trace, input_ids: np.ndarray, seed: int) -> None:
        self._module, self._trace, self._input_ids = module, trace, input_ids
        self._rng = np.random.default_rng(seed)
        order = self._rng.permutation(np.flatnonzero(np.diff(trace.offsets) > 1))
        count = min(max(round(len(order) * DEVELOPMENT_SHARE), 1), MAX_DEVELOPMENT_SEQUENCES)
        self._learned = order[count:]
        self._development = [self._batch(group, self._rng) for group in self._groups(order[:count])]

    def steps_of_epoch(self) -> int:
        return sum(1 for _ in self._groups(self._learned))

    def _groups(self, sequences: np.ndarray) -> Iterator[np.ndarray]:
        lengths = np.minimum(np.diff(self._trace.offsets)[sequences], self._module.shape.window)
        for group in group_by_length(lengths.tolist(), BATCH_TOKENS, BATCH_SEQUENCES, self._rng):
            yield sequences[group]

    def batches(self) -> Iterator[_Batch]:
        for group in self._groups(self._learned):
            batch = self._batch(group, self._rng)
            hidden = torch.from_numpy(self._rng.random(tuple(batch.known.shape)) < UNKNOWN_SHARE)
            yield replace(batch, known=torch.where(hidden & (batch.known != PAD), UNKNOWN, batch.known))

    def development_batches(self) -> Iterator[tuple[_Batch, int]]:
        for batch in self._development:
            yield batch, len(batch.indices)

    def loss(self, batch: _Batch) -> Tensor:
        """Return the mean over the decoder's tokens, layers and experts, a scalar []."""
        logits = self._module(batch.prompts, batch.known)
        routes = torch.from_numpy(self._trace.routes[batch.indices].astype(np.int64))
        chosen = logits[batch.known != PAD].float()
        return functional.binary_cross_entropy_with_logits(chosen, torch.zeros_like(chosen).scatter_(2, routes, 1.0))

    def _batch(self, sequences: np.ndarray, rng: np.random.Generator) -> _Batch:
        prompts: list[list[int]] = []
        known: list[np.ndarray] = []
        for sequence in sequences.tolist():
            prompt, read = self._cut(sequence, rng)
            prompts.append(self._input_ids[prompt].tolist())
            known.append(read)
        return _Batch(pad(prompts), pad([self._input_ids[read].tolist() for read in known]), np.concatenate(known))

    def _cut(self, sequence: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return the trace indices that the encoder reads, and those for the decoder: the prompt or what follows."""
        begin, end = self._trace.offsets[sequence : sequence + 2].tolist()
        cut = self._prompt_end(begin, end, rng)
        window = self._module.shape.window
        prompt = np.arange(max(begin, cut - window), cut)
        decoding = cut < end and rng.random() < 0.5
        return prompt, np.arange(cut, min(end, cut + window)) if decoding else prompt

    def _prompt_end(self, begin: int, end: int, rng: np.random.Generator) -> int:
        """Return the index where decoding began if the trace has it, else a random one."""
        decoded = None if self._trace.decoded is None else np.flatnonzero(self._trace.decoded[begin:end])
        if decoded is not None and len(decoded) and decoded[0]:
            return begin + int(decoded[0])
        return begin + max(1, round((end - begin) * rng.uniform(MIN_PROMPT, 1.0)))
