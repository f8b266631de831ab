"""The training loop: a budget of time, a learning rate that follows it, early stopping, averaged weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ....errors import UsageError
from ..base.training_end import EndReason, TrainingEnd

ReportProgress = Callable[[float, str], None]
"""How far the training is, from 0 to 1, and what there is to say of it."""

PATIENCE = 3
"""Looks at the development sequences without a gain after which training ends."""
LOOKS = 10
"""How often it is looked, spread over the training."""
WARM_UP_STEPS = 50
AVERAGED_STEPS = 100
"""About so many steps go into the averaged weights."""

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long and how hard to train."""

    minutes: float = 10.0
    """Wall-clock budget; the learning rate follows it, or `epochs` where those are over sooner."""
    epochs: float = 10.0
    threads: int = 1
    seed: int = 0


class Lesson(Protocol[Batch]):
    """What is learned."""

    def steps_of_epoch(self) -> int: ...

    def batches(self) -> Iterable[Batch]:
        """One epoch, in a new order every time."""
        ...

    def judged(self) -> Iterable[tuple[Batch, int]]:
        """Development batches that are never learned from, and how many tokens each has."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """Mean over the tokens of the batch."""
        ...


class Training(Generic[Batch]):
    """One run over a module: keeps an average of the weights of the latest steps, and of those the best."""

    def __init__(
        self,
        module: nn.Module,
        lesson: Lesson[Batch],
        groups: list[dict[str, Any]],
        effort: Effort,
        tell: ReportProgress,
    ) -> None:
        """`groups` are those of AdamW; each keeps the proportion of its `lr`."""
        self._module, self._lesson, self._effort, self._tell = module, lesson, effort, tell
        self._optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        self._rates = [group["lr"] for group in groups]
        self._average = _copy(module)
        self._best: tuple[float, dict[str, Tensor]] = (math.inf, _copy(module))
        self._steps = 0
        if not lesson.steps_of_epoch():
            raise UsageError("has too few sequences: none is left to learn from", "the trace", "Trace more sequences")
        self._epoch_steps = lesson.steps_of_epoch()
        self._planned_steps = effort.epochs * self._epoch_steps
        self._started_s = time.monotonic()

    def run(self) -> TrainingEnd:
        """Leave the best weights in the module; returns how the training ended."""
        looks = failures = 0
        while self._progress() < 1 and failures <= PATIENCE:
            for batch in self._lesson.batches():
                self._step(batch)
                if self._progress() >= (looks + 1) / LOOKS:
                    looks = int(self._progress() * LOOKS)
                    failures = 0 if self._look() else failures + 1
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
            group["lr"] = rate * self._schedule()
        self._lesson.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(self._module.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._steps += 1
        self._follow()

    def _schedule(self) -> float:
        """A warm-up, then a cosine down to a fiftieth."""
        cosine = 0.5 * (1 + math.cos(math.pi * self._progress()))
        return min(1.0, (self._steps + 1) / WARM_UP_STEPS) * (0.02 + 0.98 * cosine)

    def _follow(self) -> None:
        keep = min(1 - 1 / AVERAGED_STEPS, (1 + self._steps) / (10 + self._steps))
        for name, value in self._module.state_dict().items():
            self._average[name].lerp_(value, 1 - keep)

    def _look(self) -> bool:
        """Judges the average; whether it is the best so far."""
        current = _copy(self._module)
        self._module.load_state_dict(self._average)
        loss = self._development_loss()
        better = loss < self._best[0]
        if better:
            self._best = loss, _copy(self._module)
        self._module.load_state_dict(current)
        self._tell(self._progress(), f"step {self._steps}, development loss {loss:.4f}")
        return better

    @torch.no_grad()
    def _development_loss(self) -> float:
        self._module.eval()
        losses = [(float(self._lesson.loss(batch)) * tokens, tokens) for batch, tokens in self._lesson.judged()]
        self._module.train()
        return sum(loss for loss, _ in losses) / max(sum(tokens for _, tokens in losses), 1)


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
