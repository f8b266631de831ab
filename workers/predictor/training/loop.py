"""The training loop: a time limit, a learning rate that follows it, early stopping, averaged weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ....errors import UsageError
from ..base.training_end import EndReason, TrainingEnd

ReportProgress = Callable[[float, str], None]
"""Receives the progress of the training, from 0 to 1, and a line about it."""

PATIENCE = 3
"""Evaluations without a lower development loss after which training ends."""
EVALUATIONS = 10
"""Evaluations of the development sequences, spread over the training."""
WARM_UP_STEPS = 50
AVERAGED_STEPS = 100
"""Number of latest steps, about, that the averaged weights represent."""

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Limits and settings of a training."""

    minutes: float = 10.0
    """Wall-clock limit; the learning rate follows it, or `epochs` where those end sooner."""
    epochs: float = 10.0
    threads: int = 1
    seed: int = 0


class TrainingData(Protocol[Batch]):
    """Batches and their loss."""

    def steps_of_epoch(self) -> int:
        """Return the number of batches of an epoch."""
        ...

    def batches(self) -> Iterable[Batch]:
        """Yield one epoch, in a new order every time."""
        ...

    def development_batches(self) -> Iterable[tuple[Batch, int]]:
        """Yield batches that are never learned from, each with its number of tokens."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss over the tokens of the batch, a scalar [] to differentiate."""
        ...


class Training(Generic[Batch]):
    """One training of a module.

    It averages the weights of the latest steps, and keeps the average with the lowest development loss.
    """

    def __init__(
        self,
        module: nn.Module,
        data: TrainingData[Batch],
        groups: list[dict[str, Any]],
        effort: Effort,
        report_progress: ReportProgress,
    ) -> None:
        """`groups` are the parameter groups of AdamW; the schedule scales the `lr` of each.

        Raise UsageError if no sequence is left to learn from.
        """
        self._module, self._data, self._effort, self._report_progress = module, data, effort, report_progress
        self._optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        self._rates = [group["lr"] for group in groups]
        self._average = _copy(module)
        self._best: tuple[float, dict[str, Tensor]] = (math.inf, _copy(module))
        self._steps = 0
        if not data.steps_of_epoch():
            raise UsageError("has too few sequences: none is left to learn from", "the trace", "Trace more sequences")
        self._epoch_steps = data.steps_of_epoch()
        self._planned_steps = effort.epochs * self._epoch_steps
        self._started_s = time.monotonic()

    def run(self) -> TrainingEnd:
        """Train, leave the best weights in the module, and return how the training ended."""
        evaluations = failures = 0
        while self._progress() < 1 and failures <= PATIENCE:
            for batch in self._data.batches():
                self._step(batch)
                if self._progress() >= (evaluations + 1) / EVALUATIONS:
                    evaluations = int(self._progress() * EVALUATIONS)
                    failures = 0 if self._evaluate() else failures + 1
                if self._progress() >= 1 or failures > PATIENCE:
                    break
        self._module.load_state_dict(self._best[1])
        return self._end(gained=failures <= PATIENCE)

    def _end(self, gained: bool) -> TrainingEnd:
        reason: EndReason = "epochs" if self._steps >= self._planned_steps else "time"
        epochs = self._steps / self._epoch_steps
        return TrainingEnd(reason=reason if gained else "no gain", epochs=epochs, steps=self._steps)

    def _progress(self) -> float:
        elapsed_s = time.monotonic() - self._started_s
        return min(1.0, max(self._steps / self._planned_steps, elapsed_s / (60 * self._effort.minutes)))

    def _step(self, batch: Batch) -> None:
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._rate_factor()
        self._data.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(self._module.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._steps += 1
        self._update_average()

    def _rate_factor(self) -> float:
        """Return the factor of the learning rates: a warm-up, then a cosine down to a fiftieth."""
        cosine = 0.5 * (1 + math.cos(math.pi * self._progress()))
        return min(1.0, (self._steps + 1) / WARM_UP_STEPS) * (0.02 + 0.98 * cosine)

    def _update_average(self) -> None:
        keep = min(1 - 1 / AVERAGED_STEPS, (1 + self._steps) / (10 + self._steps))
        for name, value in self._module.state_dict().items():
            self._average[name].lerp_(value, 1 - keep)

    def _evaluate(self) -> bool:
        """Compute the development loss of the averaged weights; return True if it is the lowest so far."""
        current = _copy(self._module)
        self._module.load_state_dict(self._average)
        loss = self._development_loss()
        better = loss < self._best[0]
        if better:
            self._best = loss, _copy(self._module)
        self._module.load_state_dict(current)
        self._report_progress(self._progress(), f"step {self._steps}, development loss {loss:.4f}")
        return better

    @torch.no_grad()
    def _development_loss(self) -> float:
        self._module.eval()
        batches = self._data.development_batches()
        losses = [(float(self._data.loss(batch)) * tokens, tokens) for batch, tokens in batches]
        self._module.train()
        return sum(loss for loss, _ in losses) / max(sum(tokens for _, tokens in losses), 1)


def group_by_length(
    lengths: Sequence[int], max_tokens: int, max_sequences: int, rng: np.random.Generator | None = None
) -> Iterator[list[int]]:
    """Yield groups of indices into `lengths`, of similar length, so that little of a batch is padding.

    A group has at most `max_sequences` indices and `max_tokens` tokens with padding; a sequence longer than that is
    alone. With `rng` the groups differ every time and come in random order.
    """
    stretch = np.ones(len(lengths)) if rng is None else rng.uniform(0.8, 1.25, len(lengths))
    groups: list[list[int]] = [[]]
    longest = 0
    for index in np.argsort(np.asarray(lengths) * stretch, kind="stable").tolist():
        longest = max(longest, lengths[index])
        if groups[-1] and (len(groups[-1]) == max_sequences or (len(groups[-1]) + 1) * longest > max_tokens):
            groups.append([])
            longest = lengths[index]
        groups[-1].append(index)
    order = range(len(groups)) if rng is None else rng.permutation(len(groups)).tolist()
    yield from (groups[number] for number in order if groups[number])


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
