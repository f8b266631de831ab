"""Training of a small vision-language model: a budget in processor seconds, checkpoints, and going on from them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from expertflow.examples.expert_training import SORTED_EXPERTS, keep_freed_memory, register
from torch import nn
from torch.nn import functional

from .architectures import model_config
from .batches import IGNORED, Batch, BatchSource
from .routers import RouterRecorder, balance_loss
from .vocabulary import build_tokenizer

Report = Callable[[str], None]
ExtraLoss = Callable[[RouterRecorder, Batch], torch.Tensor]
"""A loss on what the routers said of a batch."""
_REPORT_STEPS, _SAVE_STEPS = 25, 100


@dataclass(frozen=True)
class TrainingPlan:
    """Settings of a run. Two runs of one plan give other weights where the machine's speed differs."""

    architecture: str
    budget_s: float
    """Processor seconds of this process; the learning rate follows them, so a pause does no harm."""
    rows: int = 16
    peak_rate: float = 1.5e-3
    balance: float = 0.01
    seed: int = 7


@dataclass
class TrainingProgress:
    """Steps taken and processor seconds used, earlier processes of the run included."""

    steps: int = 0
    used_s: float = 0.0
    loss: float = math.log(150)
    presence: float = 0.5
    """Recent share of right answers to questions for presence."""


def new_model(architecture: str, vocabulary: int, seed: int, **text: Any) -> nn.Module:
    """Return a model with random weights that trains fast on a CPU."""
    from expertflow.workers.model.architecture import model_class

    register()
    config = model_config(architecture, vocabulary, **text)
    torch.manual_seed(seed)
    model: Any = model_class(config)._from_config(config, dtype=torch.float32)
    model.set_experts_implementation(SORTED_EXPERTS)
    return model


class Trainer:
    """Trains one model; `run` returns when the budget is used."""

    def __init__(self, plan: TrainingPlan, model: nn.Module, extra_loss: ExtraLoss | None = None) -> None:
        self.plan = plan
        self.model: Any = model
        self.progress = TrainingProgress()
        tokenizer = build_tokenizer()
        self.source = BatchSource(tokenizer, plan.rows, plan.seed)
        self._yes_or_no = torch.tensor(tokenizer.convert_tokens_to_ids([" Yes", " No"]))
        self._extra_loss = extra_loss
        self._recorder = RouterRecorder(model)
        self._optimizer = _new_optimizer(model)
        self._sigmoid = plan.architecture == "glm4v_moe"

    def run(self, checkpoint: Path | None, report: Report) -> TrainingProgress:
        """Train until the budget is used, going on from `checkpoint` if the file is there."""
        if checkpoint is not None and checkpoint.is_file():
            self._load(checkpoint)
            report(f"goes on at step {self.progress.steps}")
        keep_freed_memory()
        self.model.train()
        while self.progress.used_s < self.plan.budget_s:
            begun_s = time.process_time()
            self._step(self.source.draw())
            self.progress.used_s += time.process_time() - begun_s
            self._note(checkpoint, report)
        self.model.eval()
        if checkpoint is not None:
            self._save(checkpoint)
        return self.progress

    def _step(self, batch: Batch) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate()
        with self._recorder.recording():
            hidden = self.model.model(**batch.model_inputs()).last_hidden_state
        wanted = batch.labels != IGNORED
        logits, labels = self.model.lm_head(hidden[wanted]), batch.labels[wanted]
        loss = functional.cross_entropy(logits, labels)
        total = loss
        if self._recorder.logits:
            total = total + self.plan.balance * balance_loss(self._recorder, self._sigmoid)
            if self._extra_loss is not None:
                total = total + self._extra_loss(self._recorder, batch)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        asked = torch.isin(labels, self._yes_or_no)
        self._count(loss.item(), float((logits[asked].argmax(-1) == labels[asked]).float().mean()))

    def _count(self, loss: float, presence: float) -> None:
        progress = self.progress
        progress.steps += 1
        progress.loss += 0.05 * (loss - progress.loss)
        progress.presence += 0.02 * (presence - progress.presence)

    def _rate(self) -> float:
        done = min(1.0, self.progress.used_s / self.plan.budget_s)
        warm_up = min(1.0, (self.progress.steps + 1) / 50)
        return self.plan.peak_rate * warm_up * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    def _note(self, checkpoint: Path | None, report: Report) -> None:
        progress = self.progress
        if progress.steps % _REPORT_STEPS == 0:
            report(
                f"step {progress.steps}: {progress.used_s:.0f} of {self.plan.budget_s:.0f} processor seconds, "
                f"loss {progress.loss:.3f}, presence right {progress.presence:.3f}"
            )
        if checkpoint is not None and progress.steps % _SAVE_STEPS == 0:
            self._save(checkpoint)

    def _save(self, checkpoint: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self.source.generator.bit_generator.state,
            "progress": asdict(self.progress),
        }
        fresh = checkpoint.with_suffix(".fresh")
        torch.save(state, fresh)
        fresh.rename(checkpoint)

    def _load(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.source.generator.bit_generator.state = state["generator"]
        self.progress = TrainingProgress(**state["progress"])


def _new_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW with weight decay on matrices only."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
