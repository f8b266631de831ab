"""The kernel table: which kernel computes a product, by shape, dtype and number of rows alone (I1a). Without torch.

The table is measured once on a machine (measuring.py) and travels in the survey, so all processes of an engine, and
all that come after a restart, use the same one.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Literal

import msgspec

from ...configs.checks import KERNELS

NATIVE, LEFT_FACTOR, LINEAR, FLOAT32_TILES = KERNELS
"""native: the project's own C kernels. left_factor: the library's product with the weight as the left factor. linear:
the library's linear layer. float32_tiles: tiles of a 16-bit weight are cast to float32 and multiplied as such."""
ROW_STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Numbers of rows that are measured. Between two of them the choice of the lower one holds, above the last its own."""
HALF_DTYPES = ("bfloat16", "float16")
MAX_LEFT_FACTOR_ROWS = 192
"""By the rule without a measurement, more rows are compute-bound, and a linear layer is faster."""

Origin = Literal["rule", "forced", "file", "measured", "cache"]


class LinearShape(msgspec.Struct, frozen=True):
    """A linear layer: its weight is [outputs, inputs]."""

    outputs: int
    inputs: int
    dtype: str

    transposed = False

    @property
    def key(self) -> str:
        """Return the name of the shape in a table."""
        return f"linear {self.dtype} {self.outputs}x{self.inputs}"

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of the weight."""
        return self.outputs * self.inputs * dtype_bytes(self.dtype)


class ExpertShape(msgspec.Struct, frozen=True, kw_only=True):
    """A routed expert: up to `inner` values (twice where there is a gate), the activation, and down to `width`."""

    width: int
    inner: int
    dtype: str
    gated: bool
    transposed: bool
    """The weights are stored as [inputs, outputs]."""
    bias: bool
    activation: str
    packed: str = ""
    """Form of the matrices in slots (`packing_name`); empty: as they are computed with."""

    @property
    def key(self) -> str:
        """Return the name of the shape in a table."""
        flags = {"gated": self.gated, "transposed": self.transposed, "bias": self.bias}
        words = " ".join(name for name, is_set in flags.items() if is_set)
        own = f"expert {self.dtype} {self.width}x{self.inner} {self.activation} {words} {self.packed}"
        return " ".join(own.split())

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of both matrices."""
        return (3 if self.gated else 2) * self.width * self.inner * dtype_bytes(self.dtype)


KernelShape = LinearShape | ExpertShape


class KernelTable(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel of every shape at every number of rows; a shape that is not listed has the kernel of the rule."""

    machine: dict[str, str] = {}
    """Facts that a choice depends on besides the shape: CPU, torch, threads (machine.py)."""
    isa: str = ""
    """Variant of the native kernels that was measured or forced."""
    choices: dict[str, list[str]] = {}
    """Key of a shape -> its kernel at each of `ROW_STEPS`."""
    times_us: dict[str, list[dict[str, float]]] = {}
    """Key of a shape -> at each of `ROW_STEPS` the microseconds of the kernels that were timed."""
    origin: Origin = "rule"
    is_reliable: bool = True
    """False: other processes took the cores while kernels were timed; such a table is not kept."""
    seconds: float = 0.0
    """Seconds that this start spent to measure the table or to find it in the cache."""

    def kernel_for(self, shape: KernelShape, rows: int) -> str:
        """Return the kernel that computes `rows` rows of a shape."""
        choices = self.choices.get(shape.key)
        return kernel_by_rule(shape, rows) if choices is None else choices[step_index(rows)]

    def uses(self, kernel: str) -> bool:
        """Return whether any shape is computed by this kernel at any number of rows."""
        return any(kernel in choices for choices in self.choices.values())


def step_index(rows: int) -> int:
    """Return the index of the step in `ROW_STEPS` that decides for this number of rows."""
    return max(bisect_right(ROW_STEPS, rows), 1) - 1


def kernel_by_rule(shape: KernelShape, rows: int) -> str:
    """Return the kernel of a shape that was not measured: few rows of 16 bits stream the weight as the left factor."""
    streams = shape.dtype in HALF_DTYPES and not shape.transposed and rows <= MAX_LEFT_FACTOR_ROWS
    return LEFT_FACTOR if streams else LINEAR


def forced_choices(shape: KernelShape, kernel: str, candidates: list[str]) -> list[str]:
    """Return the kernel at each of `ROW_STEPS`: `kernel` if it can take the shape, else the rule's."""
    return [kernel if kernel in candidates else kernel_by_rule(shape, rows) for rows in ROW_STEPS]


def library_candidates(shape: KernelShape) -> list[str]:
    """Return the kernels made of the library's products that can take a shape."""
    tiles = [FLOAT32_TILES] if shape.dtype in HALF_DTYPES else []
    return [*([] if shape.transposed else [LEFT_FACTOR]), LINEAR, *tiles]


def dtype_bytes(dtype: str) -> int:
    """Return the bytes of one value."""
    return 2 if dtype in HALF_DTYPES else 4
