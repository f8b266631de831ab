"""Training of a baseline on labelled pairs: Adam, L2 on embeddings, the weights of the best epoch."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .fields import Batch, FieldTable, auc
from .models import embeddings_of

SCORING_BATCH = 10_000


@dataclass(frozen=True)
class Pairs:
    """Pairs and whether they are positive."""

    users: Tensor
    """int64 [rows]."""
    items: Tensor
    """int64 [rows]."""
    labels: Tensor
    """float32 [rows], 0 or 1."""
    histories: Tensor | None = None
    """int64 [rows, HISTORY]."""

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, table: FieldTable, rows: Tensor) -> Batch:
        """Return the columns of these rows, int64 [n]."""
        return table.batch(self.users[rows], self.items[rows], None if self.histories is None else self.histories[rows])


@dataclass(frozen=True, kw_only=True)
class CtrSchedule:
    """Settings of training."""

    rate: float = 1e-3
    batch: int = 1024
    epochs: int = 30
    patience: int = 2
    embedding_l2: float = 1e-6
    """Factor of the sum of squares of all embedding weights, in the loss of a batch."""


@dataclass(frozen=True, kw_only=True)
class CtrTrained:
    """End of training."""

    best_epoch: int
    epochs: int
    validation: float
    seconds: float
    processor_seconds: float


def train_pairs(
    model: nn.Module,
    table: FieldTable,
    pairs: Callable[[int], Pairs],
    validate: Callable[[nn.Module], float],
    schedule: CtrSchedule,
    generator: torch.Generator,
) -> CtrTrained:
    """Train on `pairs` of each epoch, and leave the weights of the best epoch, by `validate`, in the model."""
    started, started_processor = time.perf_counter(), time.process_time()
    optimiser = torch.optim.Adam(model.parameters(), schedule.rate)
    best, best_epoch, weights, epoch = -1.0, 0, copy.deepcopy(model.state_dict()), 0
    for epoch in range(1, schedule.epochs + 1):
        _run_epoch(model.train(), table, pairs(epoch), optimiser, schedule, generator)
        if (score := validate(model.eval())) > best:
            best, best_epoch, weights = score, epoch, copy.deepcopy(model.state_dict())
        elif epoch - best_epoch >= schedule.patience:
            break
    model.load_state_dict(weights)
    model.eval()
    return CtrTrained(
        best_epoch=best_epoch,
        epochs=epoch,
        validation=best,
        seconds=time.perf_counter() - started,
        processor_seconds=time.process_time() - started_processor,
    )


def _run_epoch(
    model: nn.Module,
    table: FieldTable,
    pairs: Pairs,
    optimiser: torch.optim.Optimizer,
    schedule: CtrSchedule,
    generator: torch.Generator,
) -> None:
    tables = embeddings_of(model)
    for rows in torch.randperm(len(pairs), generator=generator).split(schedule.batch):
        if len(rows) < 2:  # a batch norm learns nothing from one row, and refuses it
            continue
        loss = functional.binary_cross_entropy(model(pairs.batch(table, rows)), pairs.labels[rows])
        if schedule.embedding_l2:
            loss = loss + schedule.embedding_l2 * sum(weight.square().sum() for weight in tables)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@torch.no_grad()
def score_pairs(model: nn.Module, table: FieldTable, pairs: Pairs, batch: int = SCORING_BATCH) -> np.ndarray:
    """Return float32 [rows], the probability of each pair."""
    model.eval()
    parts = [model(pairs.batch(table, rows)) for rows in torch.arange(len(pairs)).split(batch)]
    return torch.cat(parts).numpy()


def pairs_auc(model: nn.Module, table: FieldTable, pairs: Pairs) -> float:
    """Return the area under the ROC curve over all pairs."""
    return auc(score_pairs(model, table, pairs), pairs.labels.numpy() > 0.5)
