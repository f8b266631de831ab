"""Training on one window: Adam with a decaying rate, stopped by NDCG@10 on the window's last interactions."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .loss import batch_loss, log_popularity
from .model import Recommender
from .side import UsageMeter

Validate = Callable[[Recommender], float]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Settings of the paper's code. `epochs` is the largest number of them."""

    rate: float = 1e-3
    decay: float = 0.95
    least_rate: float = 1e-4
    batch: int = 256
    epochs: int = 100
    validate_from: int = 6
    """First epoch, from 1, after which the model is validated."""
    patience: int = 5


@dataclass(frozen=True, kw_only=True)
class Trained:
    """End of training on one window."""

    epochs: int
    best_epoch: int
    """Epoch whose weights were kept, from 1."""
    validation: float
    seconds: float
    processor_seconds: float
    shares: list[Tensor]
    """Share of each expert in the last epoch, for each side layer: float [experts]."""


def train_window(
    model: Recommender,
    states: Tensor,
    sequences: Tensor,
    trained_items: Tensor,
    validate: Validate,
    schedule: Schedule,
    generator: torch.Generator,
) -> Trained:
    """Train on `sequences`, int64 [n, length], and leave the weights of the best epoch in the model.

    `trained_items`, int64, are the items of the training part, for their popularity. Use is counted in training alone.
    """
    started, started_processor = time.perf_counter(), time.process_time()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], schedule.rate)
    popularity = log_popularity(trained_items, states.shape[2])
    best, best_epoch, best_weights, epoch = -1.0, 0, copy.deepcopy(model.state_dict()), 0
    meters: list[UsageMeter] = []
    for epoch in range(1, schedule.epochs + 1):
        meters = new_meters(model)
        _run_epoch(model, optimiser, states, sequences, popularity, schedule, generator, meters)
        if epoch < min(schedule.validate_from, schedule.epochs):
            continue
        if (score := validate(model.eval())) > best:
            best, best_epoch, best_weights = score, epoch, copy.deepcopy(model.state_dict())
        elif epoch - best_epoch >= schedule.patience:
            break
    model.load_state_dict(best_weights)
    model.eval()
    shares = [meter.shares() for meter in meters]
    return Trained(
        epochs=epoch,
        best_epoch=best_epoch,
        validation=best,
        seconds=time.perf_counter() - started,
        processor_seconds=time.process_time() - started_processor,
        shares=shares,
    )


def new_meters(model: Recommender) -> list[UsageMeter]:
    """Return a fresh meter for each side layer."""
    return [UsageMeter(len(layer.experts)) for layer in model.side_layers()]


def _run_epoch(
    model: Recommender,
    optimiser: torch.optim.Adam,
    states: Tensor,
    sequences: Tensor,
    popularity: Tensor,
    schedule: Schedule,
    generator: torch.Generator,
    meters: list[UsageMeter],
) -> None:
    model.train()
    for rows in torch.randperm(len(sequences), generator=generator).split(schedule.batch):
        loss = batch_loss(model, states, sequences[rows], popularity, meters)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for group in optimiser.param_groups:
        group["lr"] = max(group["lr"] * schedule.decay, schedule.least_rate)
