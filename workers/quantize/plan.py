"""Contents of a quantised copy of a checkpoint: which tensors are rounded, which stay, and its config.json."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...errors import UsageError
from ..checkpoint.config_file import read_config
from ..checkpoint.headers import StoredTensor, checkpoint_files, read_headers
from ..checkpoint.quantisation_config import quantisation_of
from ..checkpoint.shards import OutputTensor
from .matrices import DTYPES, Matrix, sort_by_expert, split_by_tensor
from .rounding import pack, quantise

WIDE_BITS = 8
"""Bits of the layers that have more than the others."""
CHANNEL = 0
"""Group that is a whole row."""
GROUPS = (32, 64, 128, CHANNEL)
EXPERT = re.compile(r"(.*\.layers\.(\d+)\..*\.experts)\.(\d+)\.(\w+)\.weight$")
TARGET = r"re:.*\.experts\.\d+\..*"
"""Modules that are quantised, as compressed-tensors names them: the linear layers of each expert."""
LAYERS_TARGET = r"re:.*\.layers\.({})\..*\.experts\.\d+\..*"
"""The same in some layers, whose numbers stand between bars."""
FORMAT = "pack-quantized"

Watch = Callable[["Matrix", torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Called with each matrix: its weight [out, in], codes [out, in] and scales [out, groups]."""


@dataclass(frozen=True)
class Precision:
    """Bits of a code, and values of a row that share a scale (`CHANNEL`: all).

    The decoder layers `wide` have `WIDE_BITS` instead.
    """

    bits: int
    group: int
    wide: tuple[int, ...] = ()

    def bits_of(self, layer: int) -> int:
        return WIDE_BITS if layer in self.wide else self.bits

    def group_of(self, columns: int) -> int:
        return self.group or columns


class QuantisePlan:
    """Tensors of a quantised copy of the model folder `source`, in the order in which they are written.

    Experts come first: layer by layer, expert by expert, and what a slot holds of an expert lies together, in the order
    of the slot. Tensors that no slot holds follow behind all of them.
    """

    def __init__(self, source: Path, precision: Precision, watch: Watch | None = None) -> None:
        """Raises CheckpointError if the source is broken, UsageError if its experts cannot be quantised."""
        config = read_config(source)
        if quantisation_of(config):
            raise _unsupported(source, "they are quantised already")
        self._precision, self._watch = precision, watch
        self._quantised: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        """Codes and scales of the matrices of one expert by name: those that are still to be written."""
        self.matrices: list[Matrix] = []
        """Matrices that are rounded, in the order in which they are written."""
        others = self._read(source)
        if not self.matrices:
            raise _unsupported(source, "no tensor is named …layers.N.….experts.N.….weight")
        self.tensors = [*self._experts(), *map(_shape_of, self.matrices), *others]
        layers = sorted({matrix.layer for matrix in self.matrices})
        self.config = config | {"quantization_config": _quantisation_config(precision, layers)}
        self.config.pop("transformers_weights", None)  # the copy has one set of weights

    @property
    def count_bytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(tensor.count_bytes for tensor in self.tensors)

    def _read(self, source: Path) -> list[OutputTensor]:
        """Find the matrices of the experts; return all other tensors, which stay as they are."""
        files = checkpoint_files(source)
        others: list[OutputTensor] = []
        for tensor in read_headers(files).values():
            file, found = files[tensor.file], EXPERT.match(tensor.name)
            if found is not None:
                self._check(tensor)
                self.matrices.append(Matrix(tensor, file, int(found[2]), int(found[3])))
            elif ".experts." in tensor.name:
                raise _unsupported(source, f"it also has {tensor.name}")
            else:
                stays = partial(tensor.read, file)
                others.append(OutputTensor(tensor.name, tensor.dtype, tensor.shape, tensor.count_bytes, stays))
        self.matrices = sort_by_expert(self.matrices)
        return others

    def _experts(self) -> Iterator[OutputTensor]:
        """Yield codes and scales of all matrices; those of an expert stay in one file."""
        for parts in split_by_tensor(self.matrices):
            yield from map(self._packed, parts)
            yield from map(self._scaled, parts)

    def _check(self, tensor: StoredTensor) -> None:
        if tensor.dtype not in DTYPES or len(tensor.shape) != 2 or 0 in tensor.shape:
            what = f"is {tensor.dtype} {tensor.shape}, not a matrix of bfloat16, float16 or float32"
            raise UsageError(what, tensor.name, "Quantise the original checkpoint")
        if tensor.shape[1] % self._precision.group_of(tensor.shape[1]):
            what = f"has rows of {tensor.shape[1]} values, which are no whole groups of {self._precision.group}"
            raise UsageError(what, tensor.name, "Choose a smaller --group, or channel: one scale a row")

    def _packed(self, matrix: Matrix) -> OutputTensor:
        rows, columns = matrix.stored.shape
        words = -(-columns * self._precision.bits_of(matrix.layer) // 32)
        name, codes = f"{matrix.name}.weight_packed", partial(self._codes, matrix)
        return OutputTensor(name, "I32", [rows, words], 4 * rows * words, codes, matrix.module)

    def _scaled(self, matrix: Matrix) -> OutputTensor:
        rows, columns = matrix.stored.shape
        groups = columns // self._precision.group_of(columns)
        count_bytes = matrix.stored.count_bytes // columns * groups
        name, scales = f"{matrix.name}.weight_scale", partial(self._scales, matrix)
        return OutputTensor(name, matrix.stored.dtype, [rows, groups], count_bytes, scales, matrix.module)

    def _codes(self, matrix: Matrix) -> memoryview:
        self._quantised[matrix.name] = self._quantise(matrix)
        return _bytes_of(pack(self._quantised[matrix.name][0], self._precision.bits_of(matrix.layer)))

    def _scales(self, matrix: Matrix) -> memoryview:
        _, scales = self._quantised.pop(matrix.name)
        return _bytes_of(scales)

    def _quantise(self, matrix: Matrix) -> tuple[torch.Tensor, torch.Tensor]:
        weight = matrix.read()
        group = self._precision.group_of(weight.shape[1])
        codes, scales = quantise(weight, self._precision.bits_of(matrix.layer), group)
        if self._watch is not None:
            self._watch(matrix, weight, codes, scales)
        return codes, scales


def _shape_of(matrix: Matrix) -> OutputTensor:
    shape = torch.tensor(matrix.stored.shape, dtype=torch.int64)
    return OutputTensor(f"{matrix.name}.weight_shape", "I64", [2], 16, lambda: _bytes_of(shape))


def _bytes_of(values: torch.Tensor) -> memoryview:
    return values.contiguous().view(torch.uint8).numpy().data.cast("B")


def _quantisation_config(precision: Precision, layers: Sequence[int]) -> dict[str, Any]:
    """Return the `quantization_config` that compressed-tensors, transformers and vLLM read."""
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": _config_groups(precision, layers),
        "ignore": ["lm_head"],
    }


def _config_groups(precision: Precision, layers: Sequence[int]) -> dict[str, Any]:
    """Return the groups of quantised modules: one, or those of each number of bits, the most bits first.

    No module is in two of them: readers do not agree on which one would count.
    """
    if not precision.wide:
        return {"experts": _config_group(TARGET, precision.bits, precision.group)}
    groups: dict[str, Any] = {}
    for bits in (WIDE_BITS, precision.bits):
        own = "|".join(str(layer) for layer in layers if precision.bits_of(layer) == bits)
        groups[f"experts_{bits}_bits"] = _config_group(LAYERS_TARGET.format(own), bits, precision.group)
    return groups


def _config_group(target: str, bits: int, group: int) -> dict[str, Any]:
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if group else "channel",
        "group_size": group or None,
        "dynamic": False,
    }
    return {"targets": [target], "weights": weights, "format": FORMAT}


def _unsupported(source: Path, why: str) -> UsageError:
    remedy = "Use a checkpoint in bfloat16, float16 or float32 with a matrix for each projection of each expert"
    return UsageError(f"these experts cannot be quantised: {why}", str(source), remedy)
