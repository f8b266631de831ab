"""Safetensors files made of holes: big on paper, free on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from expertflow.workers.model.architecture import build_on_meta, expert_parameters, experts_modules
from transformers import PreTrainedConfig

BYTES = {"F32": 4, "BF16": 2}
Shapes = dict[str, list[int]]


def write_holes(file: Path, shapes: Shapes, dtype: str = "F32") -> None:
    """A safetensors file of zeros."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + at)


def shapes_of(config: PreTrainedConfig) -> Shapes:
    """Names and shapes of a checkpoint with one gate, up and down matrix an expert."""
    model = build_on_meta(config, torch.float32)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    for layer, module in experts_modules(model):
        stacked = {name: shapes.pop(f"{layer}.{name}")[1:] for name in expert_parameters(module)}
        width, hidden = stacked["gate_up_proj"]
        for expert in range(module.num_experts):  # pyright: ignore[reportArgumentType]
            for name in ("gate_proj", "up_proj"):
                shapes[f"{layer}.{expert}.{name}.weight"] = [width // 2, hidden]
            shapes[f"{layer}.{expert}.down_proj.weight"] = stacked["down_proj"]
    return shapes


def save_sparse(folder: Path, config: PreTrainedConfig) -> None:
    """A checkpoint of zeros."""
    folder.mkdir(exist_ok=True)
    config.save_pretrained(folder)
    write_holes(folder / "model.safetensors", shapes_of(config))
