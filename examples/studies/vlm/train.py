"""Train the small vision-language models of the studies, one after the other.

python -m expertflow.examples.studies.vlm.train --out FOLDER --architectures qwen3_vl_moe --cpu-minutes 20
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro
from rich.console import Console

from .architectures import ARCHITECTURES
from .folders import save_folder
from .training import Trainer, TrainingPlan, new_model
from .vocabulary import build_tokenizer


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    out: Path
    """Folder of the model folders; checkpoints lie beside them, and a stopped run goes on from there."""
    architectures: tuple[str, ...] = tuple(ARCHITECTURES)
    cpu_minutes: float = 20.0
    """Processor minutes for each."""
    seed: int = 7


def main(options: Options) -> None:
    """Train each architecture that has no folder yet."""
    torch.set_num_threads(1)
    console = Console()
    options.out.mkdir(parents=True, exist_ok=True)
    for architecture in options.architectures:
        folder = options.out / architecture
        if folder.exists():
            continue
        plan = TrainingPlan(architecture, budget_s=60 * options.cpu_minutes, seed=options.seed)
        tokenizer = build_tokenizer()
        model = new_model(architecture, len(tokenizer), plan.seed)
        trainer = Trainer(plan, model)
        progress = trainer.run(options.out / f"{architecture}.pt", partial(console.log, architecture))
        save_folder(model, architecture, folder, plan, progress)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
