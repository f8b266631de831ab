"""Trains a path predictor on a trace."""

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
from ..base.token_table import count_tokens
from ..base.training_end import TrainingEnd
from ..judging.report import Report
from ..path.file import KIND, PathFile, PathShape, compact_counts, write_path
from ..path.forecaster import PathForecaster
from .loop import Effort, ReportProgress, Training
from .module import Batch, PathModule
from .sequences import Sequences, split_development

RATE = 2e-3
WEIGHT_DECAY = 0.05
"""Weight decay of matrices; vectors have none."""
HIDDEN_SHARE = 0.25
"""Share of the sequences whose routing is hidden from some token on, as in a prefill."""


@dataclass(frozen=True)
class TrainedPath:
    """A path predictor that was just trained; see `Trained`."""

    file: PathFile
    adapts: bool = True
    end: TrainingEnd | None = None

    def forecaster(self, vocabulary: list[str] | None, adapts: bool = True) -> Forecaster:
        """Return a fresh forecaster; `vocabulary` has the strings of the token ids that it will be given."""
        return PathForecaster(self.file, None if vocabulary is None else vocabulary.__getitem__, adapts)

    def write(self, file: Path, figures: Report) -> Report:
        """Write the predictor with its figures; return the figures with the size of the file."""
        header = msgspec.structs.replace(self.file.header, figures=figures.main_figures())
        write_path(file, replace(self.file, header=header))
        return msgspec.structs.replace(figures, file_bytes=file.stat().st_size)

    def save(self, file: Path) -> None:
        """Write the predictor, before it is judged."""
        write_path(file, self.file)


def train_path(
    trace: Trace, effort: Effort, report_progress: ReportProgress, shape: PathShape | None = None
) -> TrainedPath:
    """Train on all sequences of `trace` but the development ones, whose tokens are only counted.

    Raise UsageError if no sequence is left to learn from.
    """
    torch.set_num_threads(effort.threads)
    torch.manual_seed(effort.seed)
    names, ids = np.unique(trace.token_ids, return_inverse=True)
    vocabulary = None if trace.vocabulary is None else [trace.vocabulary[name] for name in names.tolist()]
    dense = replace(trace, token_ids=ids.astype(np.int64), vocabulary=vocabulary)
    shape = shape or default_shape(trace)
    counts, seen = count_tokens(dense)
    popularity = torch.from_numpy((counts.sum(axis=0) / trace.tokens).astype(np.float32))
    module = PathModule(shape, popularity)
    data = _PathData(module, Sequences(dense, counts, seen, popularity, shape.grams), effort.seed)
    end = Training(module, data, _parameter_groups(module), effort, report_progress).run()
    weights = {name: value.numpy().copy() for name, value in module.state_dict().items()}
    table = compact_counts(counts, seen, names if vocabulary is None else np.array(vocabulary))
    return TrainedPath(PathFile(Header(kind=KIND, model=trace.model, shape=shape), weights, table), end=end)


def default_shape(trace: Trace) -> PathShape:
    """Return the usual sizes; without n-grams if the trace has no strings of its tokens."""
    shape = PathShape(layers=trace.layers, experts=trace.expert_count, top_k=trace.top_k)
    return shape if trace.vocabulary is not None else msgspec.structs.replace(shape, grams=0)


def _parameter_groups(module: PathModule) -> list[dict[str, object]]:
    matrices = [value for value in module.parameters() if value.ndim > 1]
    vectors = [value for value in module.parameters() if value.ndim <= 1]
    return [
        {"params": matrices, "lr": RATE, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "lr": RATE, "weight_decay": 0.0},
    ]


class _PathData:
    """Batches with binary cross-entropy over all experts of all layers (the paper's Eq. 1)."""

    def __init__(self, module: PathModule, sequences: Sequences, seed: int) -> None:
        self._module, self._sequences = module, sequences
        self._rng = np.random.default_rng(seed)
        self._learned, self._development = split_development(sequences.pieces(), self._rng)

    def steps_of_epoch(self) -> int:
        return sum(1 for _ in self._sequences.groups(self._learned, self._rng))

    def batches(self) -> Iterator[Batch]:
        for batch in self._sequences.batches(self._learned, self._rng):
            yield hide_routing(batch, HIDDEN_SHARE, self._rng)

    def development_batches(self) -> Iterator[tuple[Batch, int]]:
        for batch in self._sequences.batches(self._development):
            yield batch, int(batch.valid.sum())

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean over tokens, layers and experts, a scalar []."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = self._module(batch)
        wanted = batch.multi_hot[batch.valid]
        return functional.binary_cross_entropy_with_logits(logits[batch.valid].flatten(1), wanted)


def hide_routing(batch: Batch, share: float, rng: np.random.Generator) -> Batch:
    """Hide the routing of a share of the sequences: half of those altogether, the others from a random token on."""
    count, longest = batch.tokens.shape
    from_token = np.where(rng.random(count) < 0.5, 0, rng.integers(0, longest, count))
    from_token = np.where(rng.random(count) < share, from_token, longest)
    shown = torch.arange(longest)[None, :] < torch.from_numpy(from_token)[:, None]
    return replace(batch, has_routing=batch.has_routing & shown)
