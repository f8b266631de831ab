"""The project's own C kernels (native/): found beside this module, loaded by ctypes, run on torch's own threads.

The library knows pointers, shapes and the function by which torch's OpenMP runs a loop (`GOMP_parallel`), and nothing
of torch. So there is one thread pool, and one build serves every version of torch. A row's bits do not depend on the
other rows or experts of a call, nor on where a weight begins in memory; with a packed weight and a variant of DOTS they
depend on whether there are more than MAX_DOT_ROWS.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .cpu import is_amd
from .library import NO_VARIANT, absence, open_library, usable_variants
from .packed_matrix import PackedFields, PackedMatrix

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
Weight = torch.Tensor | PackedMatrix
"""A matrix [out, in], dense or as its slot holds it. Experts of a call may be packed in different ways."""
DOTS = "_dots"
"""End of the names of variants that multiply few rows with packed matrices without unpacking."""
MAX_DOT_ROWS = 4
"""Rows with a packed matrix that these take at most: DOT_ROWS of native/kernels.h."""
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu_squared": 4}


class Job(ctypes.Structure):
    """One call of the library, laid out like `struct job` of native/kernels.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("dtype", "activation", "gated", "segments", "threads", "reserved")),
        *((name, ctypes.c_int64) for name in ("width", "inner", "out")),
        *((name, ctypes.c_void_p) for name in ("first_weight", "first_bias", "down_weight", "down_bias")),
        *((name, ctypes.c_void_p) for name in ("first_packed", "down_packed")),
        *((name, ctypes.c_void_p) for name in ("first", "last", "x", "y")),
        *((name, ctypes.c_int64) for name in ("x_stride", "y_stride")),
        ("parallel", ctypes.c_void_p),
    ]


class NativeKernels:
    """The kernels of one instruction set, `isa`. bfloat16 may have a better variant than the other types."""

    def __init__(self, library: ctypes.CDLL, parallel: int, variants: dict[str, int], isa: str) -> None:
        self._run, self._parallel = library.expertflow_run, parallel
        self._run.argtypes = [ctypes.POINTER(Job), ctypes.c_int]
        self._unpack = library.expertflow_unpack
        kinds = (ctypes.POINTER(PackedFields), ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        self._unpack.argtypes, self._unpack.restype = [*kinds, ctypes.c_int], None
        self.variants = variants
        """Variants that this CPU runs and ATEN_CPU_CAPABILITY allows, best first, by name."""
        self.isa = isa
        self._variant_of = {dtype: _variant(library, variants, isa, number) for dtype, number in DTYPES.items()}

    @classmethod
    def open(cls, isa: str = "") -> NativeKernels | None:
        """Return the kernels for this CPU, or those of `isa`; None if there are none (`missing_reason`)."""
        library, variants = open_library(), usable_variants()
        if library is None or missing_reason() or (isa and isa not in variants):
            return None
        return cls(library, _parallel(), variants, isa or _preferred(variants))

    @classmethod
    def open_for_packed(cls) -> NativeKernels | None:
        """Return the fastest kernels for packed experts on this CPU; None if there are none.

        Few rows may have other bits than by those of `open` on the unpacked values, by a millionth of a sum's terms.
        """
        usual = cls.open()
        return usual and (cls.open(f"{usual.isa}{DOTS}") or usual)

    def isas(self) -> list[str]:
        """Return the variants that this CPU can run, best first."""
        return list(self.variants)

    def counts_rows(self, rows: int) -> bool:
        """Return whether `rows` rows of a packed expert have other bits than among more rows of it."""
        return self.isa.endswith(DOTS) and rows <= MAX_DOT_ROWS

    def takes_linear(self, weight: torch.Tensor) -> bool:
        """Return whether `linear` takes a weight [out, in]."""
        return weight.dtype in DTYPES and weight.is_cpu and weight.dim() == 2 and weight.is_contiguous()

    def linear(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply rows [n, in] by a weight [out, in] and add a bias [out]: [n, out]."""
        return self.products([weight], None if bias is None else [bias], [(0, len(rows))], rows)

    def bound_linear(self, weight: Weight, bias: torch.Tensor | None, dtype: torch.dtype | None = None) -> BoundLinear:
        """Return `linear` for one weight [out, in] and bias, which stay where they are in memory: cheaper to call.

        `dtype`: of rows and bias, by default that of a dense weight.
        """
        own = weight.dtype if isinstance(weight, torch.Tensor) else dtype or torch.bfloat16
        return BoundLinear(self._run, self._variant_of[own], self._parallel, weight, bias, own)

    def unpack(self, matrix: PackedMatrix, dtype: torch.dtype, values: torch.Tensor | None = None) -> torch.Tensor:
        """Return the values of a packed matrix, `dtype` [rows, columns], in `values` if given, which is contiguous."""
        values = torch.empty(matrix.shape, dtype=dtype) if values is None else values
        where = (values.data_ptr(), self._variant_of[dtype], self._parallel, torch.get_num_threads())
        self._unpack(matrix.fields, DTYPES[dtype], *where)
        return values

    def products(
        self,
        weights: Sequence[Weight],
        biases: Sequence[Weight] | None,
        bounds: Sequence[tuple[int, int]],
        rows: torch.Tensor,
    ) -> torch.Tensor:
        """Multiply rows bounds[i] of `rows` [n, in] by weights[i] [out, in], in one call: [n, out].

        Rows outside all bounds are left uninitialised.
        """
        rows = _with_unit_stride(rows)
        result = torch.empty(len(rows), len(weights[0]), dtype=rows.dtype)
        job = Job(dtype=DTYPES[rows.dtype], width=rows.shape[1], out=result.shape[1])
        self._perform(job, bounds, rows, result, first_weight=weights, first_bias=biases)
        return result

    def experts(
        self,
        activation: str,
        weights: Sequence[Mapping[str, Weight]],
        bounds: Sequence[tuple[int, int]],
        gathered: torch.Tensor,
        products: torch.Tensor,
    ) -> None:
        """Compute experts: rows bounds[i] of `gathered` through weights[i] to the same rows of `products`.

        Both are [rows, width]. `activation` is one of ACTIVATIONS; weights hold gate_up_proj [2 * inner, width] or
        up_proj [inner, width], and down_proj [width, inner], each perhaps with a bias (`NAME_bias`). One call for all.
        A packed matrix gives the bits of its values (`unpack`).
        """
        gathered = _with_unit_stride(gathered)
        first = "gate_up_proj" if "gate_up_proj" in weights[0] else "up_proj"
        columns = {"first_weight": first, "first_bias": f"{first}_bias", "down_weight": "down_proj"}
        columns["down_bias"] = "down_proj_bias"
        job = Job(dtype=DTYPES[gathered.dtype], activation=ACTIVATIONS[activation], gated=first == "gate_up_proj")
        job.width, job.inner = gathered.shape[1], weights[0]["down_proj"].shape[1]
        tensors = {field: [one[name] for one in weights] for field, name in columns.items() if name in weights[0]}
        self._perform(job, bounds, gathered, products, **tensors)

    def _perform(
        self,
        job: Job,
        bounds: Sequence[tuple[int, int]],
        rows: torch.Tensor,
        result: torch.Tensor,
        **tensors: Sequence[Weight] | None,
    ) -> None:
        count = len(bounds)
        kept: dict[str, Any] = {name: _pointers(column) for name, column in tensors.items() if column is not None}
        for name in ("first", "down"):
            column = tensors.get(f"{name}_weight") or []
            if any(isinstance(weight, PackedMatrix) for weight in column):
                kept[f"{name}_packed"] = _packed_pointers(column)
        kept["first"] = (ctypes.c_int64 * count)(*(low for low, _ in bounds))
        kept["last"] = (ctypes.c_int64 * count)(*(high for _, high in bounds))
        for name, array in kept.items():
            setattr(job, name, ctypes.addressof(array))
        job.segments, job.threads, job.parallel = count, torch.get_num_threads(), self._parallel
        job.x, job.y, job.x_stride, job.y_stride = rows.data_ptr(), result.data_ptr(), rows.stride(0), result.stride(0)
        if self._run(ctypes.byref(job), self._variant_of[rows.dtype]):
            raise MemoryError("no memory for the packed rows of a product")


class BoundLinear:
    """A product with one weight, its call prepared: ten microseconds less for each of a step's many linear layers."""

    def __init__(
        self,
        run: Any,
        variant: int,
        parallel: int,
        weight: Weight,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self.dtype = dtype
        self._run, self._variant, self._held = run, variant, (weight, bias)
        self._weights, self._packed = _pointers([weight]), _packed_pointers([weight])
        self._biases = None if bias is None else _pointers([bias])
        self._first, self._last = ctypes.c_int64(0), ctypes.c_int64(0)
        self._job = job = Job(dtype=DTYPES[dtype], segments=1, parallel=parallel)
        job.out, job.width = job.y_stride, job.x_stride = weight.shape
        job.first_weight = ctypes.addressof(self._weights)
        job.first_packed = ctypes.addressof(self._packed) if isinstance(weight, PackedMatrix) else None
        job.first_bias = None if self._biases is None else ctypes.addressof(self._biases)
        job.first, job.last = ctypes.addressof(self._first), ctypes.addressof(self._last)
        self._reference = ctypes.byref(job)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply rows [n, in]: [n, out]."""
        rows = rows.contiguous()
        job, count = self._job, rows.shape[0]
        result = rows.new_empty((count, job.out))
        self._last.value, job.threads = count, torch.get_num_threads()
        job.x, job.y = rows.data_ptr(), result.data_ptr()
        if self._run(self._reference, self._variant):
            raise MemoryError("no memory for the packed rows of a product")
        return result


def activation_of(module: Any) -> str | None:
    """Return the name in ACTIVATIONS of what an experts module applies between its products; None if none of them."""
    from transformers.integrations.moe import _default_apply_gate

    if module.has_gate and getattr(type(module), "_apply_gate", None) is not _default_apply_gate:
        return None
    return _name_of(getattr(module, "act_fn", None))


def _name_of(function: Any) -> str | None:
    from transformers import activations

    names = {
        activations.SiLUActivation: "silu",
        torch.nn.SiLU: "silu",
        activations.GELUTanh: "gelu_tanh",
        torch.nn.ReLU: "relu",
        activations.ReLUSquaredActivation: "relu_squared",
    }
    if type(function) is activations.GELUActivation:
        return "gelu" if function.act is torch.nn.functional.gelu else None
    return names.get(type(function))


@functools.cache
def missing_reason() -> str:
    """Return why there are no native kernels here; empty if there are."""
    if reason := absence():
        return reason
    if not usable_variants():
        return NO_VARIANT
    return "" if _parallel() else "torch was built without GNU OpenMP, whose threads the kernels run on"


@functools.cache
def _parallel() -> int:
    """Return the address of `GOMP_parallel` in the OpenMP library that torch runs on; 0 if it has none."""
    folder = Path(torch.__file__).parent
    for file in [*folder.glob("lib/libgomp*.so*"), *folder.parent.glob("torch.libs/libgomp*.so*")]:
        return ctypes.cast(ctypes.CDLL(str(file)).GOMP_parallel, ctypes.c_void_p).value or 0
    return 0


def _preferred(variants: dict[str, int]) -> str:
    """Return the best variant. Intel's CPUs multiply bfloat16 pairs at half the rate of AMD's: no gain over float32."""
    slow = () if is_amd() else ("avx512_bf16",)
    return next((name for name in variants if name not in slow), next(iter(variants)))


def _variant(library: ctypes.CDLL, variants: dict[str, int], isa: str, dtype: int) -> int:
    """Return the variant for a type: that of `isa`, or the best that follows it and takes the type."""
    names = list(variants)
    return next(variants[name] for name in names[names.index(isa) :] if library.expertflow_takes(variants[name], dtype))


def _pointers(tensors: Sequence[Weight]) -> Any:
    """Return the addresses of the dense ones among tensors."""
    dense = (None if isinstance(tensor, PackedMatrix) else tensor.data_ptr() for tensor in tensors)
    return (ctypes.c_void_p * len(tensors))(*dense)


def _packed_pointers(weights: Sequence[Weight]) -> Any:
    """Return the addresses of the descriptions of the packed ones among weights."""
    packed = (weight.address if isinstance(weight, PackedMatrix) else None for weight in weights)
    return (ctypes.c_void_p * len(weights))(*packed)


def _with_unit_stride(rows: torch.Tensor) -> torch.Tensor:
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()
