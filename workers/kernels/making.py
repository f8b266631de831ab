"""Makes the kernel table of a model, where its survey is made: measured, from the cache, forced, or from a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from torch import nn

from ...configs.checks import KERNELS
from ...errors import UsageError
from ...ipc.messages import Progress
from ..packed.packing import Packing
from .cache import read_cached, read_table, table_file, table_lock, write_table
from .library import library_digest
from .machine import machine_facts
from .measuring import Measuring
from .native import NativeKernels
from .native import missing_reason as native_missing_reason
from .packed_workloads import PackedExpertWorkload, packed_candidates
from .shapes import expert_shape, linear_shapes
from .table import NATIVE, ExpertShape, KernelTable, LinearShape, forced_choices
from .workloads import (
    MIN_WEIGHT_BYTES,
    ExpertWorkload,
    LinearWorkload,
    WeightPool,
    Workload,
    expert_candidates,
    linear_candidates,
)

AUTO = "auto"


class ModelParts:
    """The parts of a model that kernels compute: a skeleton on the meta device and one of its experts modules."""

    def __init__(
        self,
        skeleton: nn.Module,
        experts: Any,
        tensors: Mapping[str, list[int]],
        dtypes: Mapping[str, torch.dtype],
        packings: Sequence[Packing] = (),
    ) -> None:
        """`tensors`: name and shape of the parameters of one expert; `dtypes`: of each parameter once it is loaded.

        `packings`: of the matrices that slots hold packed, in every variant and kind.
        """
        self.module = experts
        self.linears: list[LinearShape] = linear_shapes(skeleton, dtypes)
        self.packed = bool(packings)
        self._tensors, self._packings = tensors, packings

    def experts(self, dtype: str) -> dict[ExpertShape, list[Packing]]:
        """Return the shapes of the experts in this dtype, one for each way to hold them, with packings of an expert.

        Empty if an adapter computes them.
        """
        variants = sorted({packing.variant for packing in self._packings}) or [0]
        shapes: dict[ExpertShape, list[Packing]] = {}
        for variant in variants:
            own = [packing for packing in self._packings if packing.variant == variant]
            shape = expert_shape(self.module, self._tensors, dtype, own)
            if shape is not None:
                shapes.setdefault(shape, [packing for packing in own if packing.kind == 0])
        return shapes

    def open_native(self) -> NativeKernels | None:
        """Return the native kernels that suit the model; None if there are none."""
        return NativeKernels.open_for_packed() if self.packed else NativeKernels.open()


class TableMaker:
    """Makes the table that a configuration asks for: `kernels` is auto, the name of a kernel, or a file.

    With `again` an auto table is measured even if the cache has one; without `times` it is never measured, and empty
    where the cache has none.
    """

    def __init__(
        self, kernels: str, report: Callable[[Progress], None], again: bool = False, times: bool = True
    ) -> None:
        self._kernels, self._report, self._again, self._times = kernels, report, again, times
        self.notices: list[str] = []
        """Remarks for the user, after `make`."""

    def make(self, parts: ModelParts, dtype: str) -> KernelTable:
        """Return the table of a model whose experts have this dtype. Raises UsageError for a bad file."""
        started = time.perf_counter()
        if self._kernels == AUTO:
            table = self._automatic(parts, dtype)
        elif self._kernels in KERNELS:
            table = _forced(parts, dtype, self._kernels)
        else:
            table = _from_file(Path(self._kernels))
        return structs.replace(table, seconds=round(time.perf_counter() - started, 4))

    def _automatic(self, parts: ModelParts, dtype: str) -> KernelTable:
        native, linears = parts.open_native(), [each for each in parts.linears if _is_timed(each)]
        experts = {shape: own for shape, own in parts.experts(dtype).items() if _is_timed(shape)}
        if experts and parts.module.has_post_expert_norm:
            experts = {}
        machine = machine_facts(native_name(native))
        keys = [shape.key for shape in [*linears, *experts]]
        if not keys:
            return KernelTable(machine=machine)
        if not self._times:
            return _kept(machine, keys)
        try:
            file = table_file(machine, keys)
        except RuntimeError as error:
            self.notices.append(_unkept(str(error)))
            return self._measured(parts, linears, experts, native, machine)
        with table_lock(file.parent):
            found = None if self._again else read_cached(file, machine, keys)
            if found is not None:
                return structs.replace(found, origin="cache")
            table = self._measured(parts, linears, experts, native, machine)
            self._keep(file, table)
            return table

    def _measured(
        self,
        parts: ModelParts,
        linears: list[LinearShape],
        experts: dict[ExpertShape, list[Packing]],
        native: NativeKernels | None,
        machine: dict[str, str],
    ) -> KernelTable:
        pool = WeightPool()
        works = [_expert_workload(shape, packings, parts, pool, native) for shape, packings in experts.items()]
        works += [LinearWorkload(shape, pool, native) for shape in linears]
        measured = Measuring(works, self._report_step).run()
        isa = "" if native is None else native.isa
        return KernelTable(
            machine=machine,
            isa=isa,
            choices=measured.choices,
            times_us=measured.times_us,
            origin="measured",
            is_reliable=measured.is_reliable,
        )

    def _report_step(self, done: int, total: int) -> None:
        self._report(Progress("kernels", "timing kernels", done, total))

    def _keep(self, file: Path, table: KernelTable) -> None:
        if not table.is_reliable:
            self.notices.append("the machine was busy while kernels were timed; they are timed again at the next start")
            return
        try:
            write_table(file, table)
        except OSError as error:
            self.notices.append(_unkept(f"{file.parent}: {error.strerror}"))


def _kept(machine: dict[str, str], keys: list[str]) -> KernelTable:
    """Return the table that the cache has for this machine; an empty one if it has none."""
    with suppress(RuntimeError):  # a user without a home
        if (found := read_cached(table_file(machine, keys), machine, keys)) is not None:
            return structs.replace(found, origin="cache")
    return KernelTable(machine=machine)


def _expert_workload(
    shape: ExpertShape, packings: list[Packing], parts: ModelParts, pool: WeightPool, native: NativeKernels | None
) -> Workload:
    if packings:
        return PackedExpertWorkload(shape, packings, parts.module, native)
    return ExpertWorkload(shape, parts.module, pool, native)


def native_name(native: NativeKernels | None) -> str:
    """Return variant and digest of the native kernels; empty without them."""
    return "" if native is None else f"{native.isa} {library_digest()}"


def _unkept(reason: str) -> str:
    return f"kernels are timed again at every start, as the table cannot be kept ({reason})"


def _is_timed(shape: LinearShape | ExpertShape) -> bool:
    return shape.weight_bytes >= MIN_WEIGHT_BYTES


def _forced(parts: ModelParts, dtype: str, kernel: str) -> KernelTable:
    """Return a table of one kernel; shapes that it cannot take have the kernels of the rule.

    Raises UsageError for the native kernels if they are missing.
    """
    native = NativeKernels.open() if kernel == NATIVE else None
    if kernel == NATIVE and native is None:
        what = f"are missing: {native_missing_reason()}"
        raise UsageError(what, "kernels = native", "Choose auto, or another kernel")
    choices = {shape.key: forced_choices(shape, kernel, linear_candidates(shape, native)) for shape in parts.linears}
    for expert, packings in parts.experts(dtype).items():
        candidates = packed_candidates(expert_candidates(expert, parts.module, native, packings), packings)
        choices[expert.key] = forced_choices(expert, kernel, candidates)
    isa = "" if native is None else native.isa
    return KernelTable(machine=machine_facts(native_name(native)), isa=isa, choices=choices, origin="forced")


def _from_file(file: Path) -> KernelTable:
    table = read_table(file)
    if table.uses(NATIVE) and NativeKernels.open(table.isa) is None:
        what = f"names the native kernels ({table.isa}), which are missing here: {native_missing_reason()}"
        raise UsageError(what, f"kernels = {file}", "Measure a table on this machine, or choose auto")
    return structs.replace(table, origin="file")
