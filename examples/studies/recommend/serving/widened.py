"""Widened side experts in a safetensors file, and the survey by which the loader reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from .....errors import UsageError
from .....workers.checkpoint.headers import read_headers
from .....workers.checkpoint.layout import block_for, place_regions
from .....workers.checkpoint.stamps import stamp_files
from .....workers.checkpoint.survey import Piece, RowFacts, Survey
from ..xsmoe.model import Recommender

DOWN, UP = "down", "up"


def widen_matrix(name: str, matrix: Tensor, factor: int) -> Tensor:
    """Return the matrix of an expert with each neuron repeated; the way up is divided, so the function stays.

    For a power of two the division rounds nothing. `down` is float [neurons, width], `up` float [width, neurons].
    """
    if name == DOWN:
        return matrix.repeat_interleave(factor, 0).contiguous()
    return (matrix.repeat_interleave(factor, 1) / factor).contiguous()


def write_experts(model: Recommender, file: Path, factor: int) -> None:
    """Write all side experts, widened by `factor`. Raises UsageError if layers differ in their number of experts."""
    layers = model.side_layers()
    if factor < 1 or factor & (factor - 1):
        raise UsageError(f"{factor} is not a power of two", "widen", "Choose 1, 2, 4, … 64")
    if len({len(layer.experts) for layer in layers}) > 1:
        raise UsageError("the side layers differ in their experts", "model", "Serve one that grew without pruning")
    tensors = {
        f"{number}.{expert}.{name}": widen_matrix(name, side.get_parameter(f"{name}.weight").detach(), factor)
        for number, layer in enumerate(layers)
        for expert, side in enumerate(layer.experts)
        for name in (DOWN, UP)
    }
    save_file(tensors, file)


def survey_experts(file: Path, layers: int, experts: int, top_k: int) -> Survey:
    """Return the survey of a file that `write_experts` wrote: a block for the loader is a side layer."""
    stored = read_headers([file])
    first = {name: stored[f"0.0.{name}"] for name in (DOWN, UP)}
    shapes = {name: list(tensor.shape) for name, tensor in first.items()}
    expert_bytes = sum(tensor.count_bytes for tensor in first.values())
    block_bytes = block_for(expert_bytes)
    tensors, stride_bytes = place_regions(shapes, "float32", block_bytes)
    places = [
        [[(0, stored[f"{layer}.{expert}.{name}"].offset_bytes) for name in (DOWN, UP)] for expert in range(experts)]
        for layer in range(layers)
    ]
    return Survey(
        folder=str(file.parent),
        model_type="xsmoe",
        architecture="XSMoE",
        dtype="float32",
        context=1,
        vocabulary=1,
        eos_ids=[],
        layers=layers,
        experts=experts,
        top_k=top_k,
        module_names=[f"side.{number}" for number in range(layers)],
        skeleton_bytes=0,
        rows=RowFacts(kv_bytes_per_position=0),
        files=[str(file)],
        stamps=stamp_files([file]),
        tensors=tensors,
        pieces=[
            Piece(
                tensor=number,
                position_bytes=0,
                count_bytes=tensor.count_bytes,
                source_bytes=tensor.count_bytes,
                source_dtype="float32",
                source_shape=tensor.shape,
            )
            for number, tensor in enumerate(tensors)
        ],
        places=np.array(places, dtype=np.int64).tobytes(),
        stride_bytes=stride_bytes,
        block_bytes=block_bytes,
    )


def resident_experts(file: Path) -> dict[str, Tensor]:
    """Return all matrices of the file by name, for the reference that has everything in memory."""
    from safetensors.torch import load_file

    return {name: torch.clone(tensor) for name, tensor in load_file(file).items()}
