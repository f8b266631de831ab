"""Contents of a quantised copy of a checkpoint: which tensors are rounded, which stay, and its config.json."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError, UsageError
from ..checkpoint.config_file import read_config
from ..checkpoint.headers import StoredTensor, checkpoint_files, read_headers
from ..checkpoint.quantisation_config import quantisation_of
from ..checkpoint.shards import OutputTensor
from .rounding import pack, quantise

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
WIDE_BITS = 8
"""Bits of the layers that have more than the others."""
CHANNEL = 0
"""Group that is a whole row."""
GROUPS = (32, 64, 128, CHANNEL)
EXPERT = re.compile(r"(.*\.layers\.(\d+)\..*\.experts\.(\d+)\.\w+)\.weight$")
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


@dataclass(frozen=True)
class Matrix:
    """A matrix [out, in] of an expert, as the source stores it."""

    stored: StoredTensor
    file: Path
    layer: int
    """Number of its decoder layer, as in its name."""
    expert: int
    """Number of its expert in that layer."""

    def read(self) -> torch.Tensor:
        """Return it. Raises CheckpointError if a value is not finite."""
        values = torch.frombuffer(self.stored.read(self.file), dtype=DTYPES[self.stored.dtype])
        if not values.isfinite().all():
            raise CheckpointError("holds values that are not finite", self.stored.name, "Use a whole checkpoint")
        return values.view(self.stored.shape)


class QuantisePlan:
    """Tensors of a quantised copy of the model folder `source`, in the order in which they are written."""

    def __init__(self, source: Path, precision: Precision, watch: Watch | None = None) -> None:
        """Raises CheckpointError if the source is broken, UsageError if its experts cannot be quantised."""
        config = read_config(source)
        if quantisation_of(config):
            raise _unsupported(source, "they are quantised already")
        self._precision, self._watch = precision, watch
        files = checkpoint_files(source)
        stored = list(read_headers(files).values())
        self.matrices: list[Matrix] = []
        """Matrices that are rounded, in the order in which they are written."""
        self._quantised: tuple[str, torch.Tensor, torch.Tensor] | None = None
        """Name, codes and scales of the last matrix: its scales are written after its codes."""
        self.tensors = [output for tensor in stored for output in self._outputs(tensor, files[tensor.file], source)]
        if not any(EXPERT.match(tensor.name) for tensor in stored):
            raise _unsupported(source, "no tensor is named …layers.N.….experts.N.….weight")
        layers = sorted({matrix.layer for matrix in self.matrices})
        self.config = config | {"quantization_config": _quantisation_config(precision, layers)}
        self.config.pop("transformers_weights", None)  # the copy has one set of weights

    @property
    def count_bytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(tensor.count_bytes for tensor in self.tensors)

    def _outputs(self, tensor: StoredTensor, file: Path, source: Path) -> list[OutputTensor]:
        found = EXPERT.match(tensor.name)
        if found is None:
            if ".experts." in tensor.name:
                raise _unsupported(source, f"it also has {tensor.name}")
            stays = partial(tensor.read, file)
            return [OutputTensor(tensor.name, tensor.dtype, tensor.shape, tensor.count_bytes, stays)]
        self._check(tensor)
        self.matrices.append(Matrix(tensor, file, int(found[2]), int(found[3])))
        return self._packed(found[1], self.matrices[-1])

    def _check(self, tensor: StoredTensor) -> None:
        if tensor.dtype not in DTYPES or len(tensor.shape) != 2:
            what = f"is {tensor.dtype} {tensor.shape}, not a matrix of bfloat16, float16 or float32"
            raise UsageError(what, tensor.name, "Quantise the original checkpoint")
        if tensor.shape[1] % self._precision.group_of(tensor.shape[1]):
            what = f"has rows of {tensor.shape[1]} values, which are no whole groups of {self._precision.group}"
            raise UsageError(what, tensor.name, "Choose a smaller --group, or channel: one scale a row")

    def _packed(self, name: str, matrix: Matrix) -> list[OutputTensor]:
        stored, precision = matrix.stored, self._precision
        rows, columns = stored.shape
        words = -(-columns * precision.bits_of(matrix.layer) // 32)
        groups = columns // precision.group_of(columns)
        item_bytes = stored.count_bytes // (rows * columns)
        shape = torch.tensor(stored.shape, dtype=torch.int64)
        codes, scales = partial(self._codes, matrix), partial(self._scales, matrix)
        return [
            OutputTensor(f"{name}.weight_packed", "I32", [rows, words], 4 * rows * words, codes),
            OutputTensor(f"{name}.weight_scale", stored.dtype, [rows, groups], item_bytes * rows * groups, scales),
            OutputTensor(f"{name}.weight_shape", "I64", [2], 16, lambda: _bytes_of(shape)),
        ]

    def _codes(self, matrix: Matrix) -> memoryview:
        return _bytes_of(pack(self._quantise(matrix)[0], self._precision.bits_of(matrix.layer)))

    def _scales(self, matrix: Matrix) -> memoryview:
        return _bytes_of(self._quantise(matrix)[1])

    def _quantise(self, matrix: Matrix) -> tuple[torch.Tensor, torch.Tensor]:
        name, precision = matrix.stored.name, self._precision
        if self._quantised is None or self._quantised[0] != name:
            weight = matrix.read()
            group = precision.group_of(weight.shape[1])
            codes, scales = quantise(weight, precision.bits_of(matrix.layer), group)
            if self._watch is not None:
                self._watch(matrix, weight, codes, scales)
            self._quantised = name, codes, scales
        return self._quantised[1:]


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
