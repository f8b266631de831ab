"""Widening of a small vision-language model: the same function with experts that weigh what published ones do.

Every neuron of an expert is repeated and the down projection divided by the factor, as `expertflow widen` does for
models of text; published vision-language models store a layer's experts in one tensor, which that command refuses.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from expertflow.errors import UsageError
from expertflow.workers.checkpoint.config_file import read_config
from expertflow.workers.model.architecture import load_config, model_class
from torch import nn

_WIDTHS = ("moe_intermediate_size", "shared_expert_intermediate_size")


def widen_folder(source: Path, destination: Path, factor: int) -> None:
    """Write a copy of the model folder whose experts are `factor` times as wide; complete or not at all.

    Raises UsageError unless the factor is a power of two, for which nothing is rounded.
    """
    if factor < 1 or factor & (factor - 1):
        raise UsageError(f"the factor {factor} is not a power of two", "factor", "Choose 2, 4, 8, … 64")
    destination.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        _write_widened(source, fresh, factor)
        fresh.chmod(0o755)
        fresh.rename(destination)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _write_widened(source: Path, folder: Path, factor: int) -> None:
    config: Any = load_config(source)
    cls: Any = model_class(config)
    model = cls.from_pretrained(source, dtype="auto")
    widen_experts(model, factor)
    text = model.config.text_config
    for name in _WIDTHS:
        if width := getattr(text, name, None):
            setattr(text, name, [each * factor for each in width] if isinstance(width, list) else width * factor)
    model.save_pretrained(folder)
    for file in sorted(source.iterdir()):
        if file.suffix in (".json", ".jinja") and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    read_config(folder)


def widen_experts(model: nn.Module, factor: int) -> None:
    """Repeat the neurons of all routed and shared experts in place."""
    for name, module in model.named_modules():
        experts: Any = module
        if name.endswith(".experts") and hasattr(module, "gate_up_proj"):
            gate, up = experts.gate_up_proj.data.chunk(2, dim=1)
            wide = [half.repeat_interleave(factor, dim=1) for half in (gate, up)]
            experts.gate_up_proj = nn.Parameter(torch.cat(wide, dim=1))
            experts.down_proj = nn.Parameter(experts.down_proj.data.repeat_interleave(factor, dim=2) / factor)
        elif name.endswith(".shared_experts"):
            for part in (experts.gate_proj, experts.up_proj):
                part.weight = nn.Parameter(part.weight.data.repeat_interleave(factor, dim=0))
            down = experts.down_proj
            down.weight = nn.Parameter(down.weight.data.repeat_interleave(factor, dim=1) / factor)
