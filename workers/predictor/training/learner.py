"""Trains a path predictor on a trace."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

import msgspec
import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from ...traces.trace import Trace
from ..forecaster import Forecaster
from ..judging.report import Report
from ..path.file import Header, PathFile, write_path
from ..path.forecaster import Path
from ..path.shape import PathShape
from .counting import compact, count_tokens
from .module import Batch, PathModule
from .sequences import Piece, Sequences

Tell = Callable[[float, str], None]
"""How far the training is, from 0 to 1, and what there is to say of it."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long and how hard to train."""

    minutes: float = 6.0
    """Wall-clock budget; the learning rate follows it, or `epochs` where those are over sooner."""
    epochs: float = 12.0
    threads: int = 1
    seed: int = 0
    rate: float = 2e-3
    decay: float = 0.05
    """Weight decay of matrices."""
    development: float = 0.08
    """Share of the training sequences that early stopping judges by."""
    patience: int = 3
    """Looks at the development sequences without a gain after which training ends."""
    looks: int = 10
    """How often it is looked, spread over the training."""
    unknown: float = 0.25
    """Share of sequences whose routing is hidden from some token on, as in a prefill."""


def train_path(trace: Trace, effort: Effort, tell: Tell, shape: PathShape | None = None) -> PathFile:
    """A predictor that learned from all sequences of `trace` but the development ones, whose tokens it only counts."""
    torch.set_num_threads(effort.threads)
    torch.manual_seed(effort.seed)
    names, ids = np.unique(trace.token_ids, return_inverse=True)
    vocabulary = None if trace.vocabulary is None else [trace.vocabulary[name] for name in names.tolist()]
    dense = replace(trace, token_ids=ids.astype(np.int64), vocabulary=vocabulary)
    shape = shape or default_shape(trace)
    counts, seen = count_tokens(dense)
    popularity = torch.from_numpy((counts.sum(axis=0) / trace.tokens).astype(np.float32))
    module = PathModule(shape, popularity)
    sequences = Sequences(dense, counts, seen, popularity, shape.grams)
    _Training(module, sequences, effort, tell).run()
    weights = {name: value.numpy().copy() for name, value in module.state_dict().items()}
    table = compact(counts, seen, names if vocabulary is None else np.array(vocabulary))
    return PathFile(Header(model=trace.model, shape=shape), weights, table)


@dataclass(frozen=True)
class TrainedPath:
    """A path predictor that was just trained."""

    file: PathFile

    def forecaster(self, vocabulary: list[str] | None) -> Forecaster:
        """`vocabulary` are the strings of the token ids that it will be asked for."""
        return Path(self.file, None if vocabulary is None else vocabulary.__getitem__)

    def write(self, file: FilePath, figures: Report) -> Report:
        """Writes it with its figures; returns them with the size of the file."""
        header = msgspec.structs.replace(self.file.header, figures=figures.main_figures())
        write_path(file, replace(self.file, header=header))
        return msgspec.structs.replace(figures, file_bytes=file.stat().st_size)


def default_shape(trace: Trace) -> PathShape:
    """Only tokens that have strings can be told by their spelling."""
    sizes = {"layers": trace.layers, "experts": trace.expert_count, "top_k": trace.top_k}
    return PathShape(**sizes, grams=PathShape(**sizes).grams if trace.vocabulary is not None else 0)


class _Training:
    """One run: keeps a running average of the weights, and of those the best on the development sequences."""

    def __init__(self, module: PathModule, sequences: Sequences, effort: Effort, tell: Tell) -> None:
        self._module, self._sequences, self._effort, self._tell = module, sequences, effort, tell
        self._dice = np.random.default_rng(effort.seed)
        self._learned, self._judged = self._divided(sequences.pieces())
        self._steps = 0
        epoch_steps = sum(1 for _ in sequences.groups(self._learned, self._dice))
        self._planned_steps = max(int(effort.epochs * epoch_steps), 1)
        self._average = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self._best: tuple[float, dict[str, Tensor]] = (math.inf, self._average)
        self._optimizer = _optimizer(module, effort)
        self._started_s = time.monotonic()

    def _divided(self, pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
        sequences = self._dice.permutation(len({piece.sequence for piece in pieces}))
        aside = set(sequences[: max(round(len(sequences) * self._effort.development), 1)].tolist())
        return [one for one in pieces if one.sequence not in aside], [one for one in pieces if one.sequence in aside]

    def run(self) -> None:
        """Leaves the best average in the module."""
        looks = failures = 0
        for batch in self._stream():
            self._step(batch)
            if self._progress() >= (looks + 1) / self._effort.looks:
                looks += 1
                failures = 0 if self._look() else failures + 1
            if failures > self._effort.patience or self._progress() >= 1:
                break
        self._module.load_state_dict(self._best[1])

    def _stream(self) -> Iterator[Batch]:
        while True:
            yield from self._sequences.batches(self._learned, self._dice)

    def _progress(self) -> float:
        elapsed_s = time.monotonic() - self._started_s
        return min(1.0, max(self._steps / self._planned_steps, elapsed_s / (60 * self._effort.minutes)))

    def _step(self, batch: Batch) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        loss = self._loss(hidden_from(batch, self._effort.unknown, self._dice))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._module.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._steps += 1
        self._follow()

    def _rate(self) -> float:
        """A warm-up of 50 steps, then a cosine down to a fiftieth."""
        cosine = 0.5 * (1 + math.cos(math.pi * self._progress()))
        return self._effort.rate * min(1.0, (self._steps + 1) / 50) * (0.02 + 0.98 * cosine)

    def _loss(self, batch: Batch) -> Tensor:
        """Binary cross-entropy over all experts of all layers (the paper's Eq. 1)."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = self._module(batch)
        wanted = batch.routes[batch.valid]
        return functional.binary_cross_entropy_with_logits(logits[batch.valid].flatten(1), wanted)

    def _follow(self) -> None:
        keep = min(0.99, (1 + self._steps) / (10 + self._steps))
        for name, value in self._module.state_dict().items():
            self._average[name].lerp_(value, 1 - keep)

    def _look(self) -> bool:
        """Judges the average; whether it is the best so far."""
        current = {name: value.detach().clone() for name, value in self._module.state_dict().items()}
        self._module.load_state_dict(self._average)
        loss = self._development_loss()
        self._module.load_state_dict(current)
        better = loss < self._best[0]
        if better:
            self._best = loss, {name: value.clone() for name, value in self._average.items()}
        self._tell(self._progress(), f"step {self._steps}, development loss {loss:.4f}")
        return better

    @torch.no_grad()
    def _development_loss(self) -> float:
        self._module.eval()
        losses = [(float(self._loss(batch)), int(batch.valid.sum())) for batch in self._sequences.batches(self._judged)]
        self._module.train()
        return sum(loss * tokens for loss, tokens in losses) / sum(tokens for _, tokens in losses)


def hidden_from(batch: Batch, share: float, dice: np.random.Generator) -> Batch:
    """Some sequences lose their routing, half of those altogether and the others from a random token on."""
    count, longest = batch.tokens.shape
    from_token = np.where(dice.random(count) < 0.5, 0, dice.integers(0, longest, count))
    from_token = np.where(dice.random(count) < share, from_token, longest)
    known = torch.arange(longest)[None, :] < torch.from_numpy(from_token)[:, None]
    return replace(batch, known=batch.known & known)


def _optimizer(module: PathModule, effort: Effort) -> torch.optim.Optimizer:
    matrices = [value for value in module.parameters() if value.ndim > 1]
    vectors = [value for value in module.parameters() if value.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": effort.decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=effort.rate, betas=(0.9, 0.98))
