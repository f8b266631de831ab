"""Training of one kind with one seed, within a budget of processor seconds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..resumable import Report
from ..vlm.architectures import HIDDEN
from ..vlm.routers import router_modules
from ..vlm.training import Trainer, TrainingPlan
from ..vlm.vocabulary import build_tokenizer
from .kinds import ARCHITECTURE, Kind, kind_model
from .smoes import SmoesLoss

_SEED_STEP = 1000


def train_kind(kind: Kind, seed: int, budget_s: float, checkpoint: Path, report: Report) -> dict[str, Any]:
    """Train the kind, going on from the checkpoint; return steps, processor seconds and the size."""
    torch.set_num_threads(1)
    model = kind_model(kind, len(build_tokenizer()), seed)
    plan = TrainingPlan(ARCHITECTURE, budget_s, balance=0.0 if _balances_itself(kind) else 0.01, seed=_SEED_STEP + seed)
    extra = SmoesLoss(len(router_modules(model)), kind.experts, HIDDEN) if kind.specialised else None
    progress = Trainer(plan, model, extra).run(checkpoint, report)
    return {**asdict(progress), "weights": sum(each.numel() for each in model.parameters())}


def _balances_itself(kind: Kind) -> bool:
    """Return whether the balancing loss has no place: SMoES has its own, a hash and a single expert need none."""
    return kind.specialised or kind.router == "hash" or kind.experts == 1


def load_kind(kind: Kind, seed: int, checkpoint: Path) -> nn.Module:
    """Return the trained model."""
    model = kind_model(kind, len(build_tokenizer()), seed).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    return model
