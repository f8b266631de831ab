"""Model folders of the small vision-language models, as published ones look."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from expertflow.errors import UsageError
from torch import nn

from .architectures import ARCHITECTURES, PIXELS
from .training import TrainingPlan, TrainingProgress
from .vocabulary import build_tokenizer

TRAINING_FILE = "training.json"
WEIGHTS = Path(__file__).parent / "weights"


def trained_folder(architecture: str) -> Path:
    """Return the folder of the trained model that lies beside this code. Raises UsageError if it is missing."""
    folder = WEIGHTS / architecture
    if not (folder / "config.json").is_file():
        remedy = "Train it: python -m expertflow.examples.studies.vlm.train"
        raise UsageError(f"there is no trained model of {architecture}", str(folder), remedy)
    return folder


def save_folder(
    model: nn.Module, architecture: str, folder: Path, plan: TrainingPlan, progress: TrainingProgress
) -> None:
    """Write weights (bfloat16), tokenizer, image processor and the facts of the training; complete or not at all."""
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write_parts(model, architecture, fresh)
        facts = {"plan": asdict(plan), "progress": asdict(progress)}
        (fresh / TRAINING_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        fresh.chmod(0o755)
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def write_parts(model: nn.Module, architecture: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write weights, tokenizer and image processor into a folder that exists. The model is cast to `dtype`."""
    written: Any = model.to(dtype)
    written.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    ARCHITECTURES[architecture].image_processor(**PIXELS).save_pretrained(folder)
