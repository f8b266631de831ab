"""Kernel tables of models with packed experts: a row for each packing, timed as it is, and the way to hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.workers.compute.lockstep.layer import LockstepLayer, Segment
from expertflow.workers.compute.lockstep.lockstep import Lockstep
from expertflow.workers.kernels import native
from expertflow.workers.kernels.dispatch import ExpertKernels, Kernels
from expertflow.workers.kernels.making import ModelParts, TableMaker
from expertflow.workers.kernels.native import DOTS, NativeKernels
from expertflow.workers.kernels.packed_experts import NativeUnpacker
from expertflow.workers.kernels.packed_workloads import PackedExpertWorkload, fitting_packings, sample_tensors
from expertflow.workers.kernels.shapes import packing_name
from expertflow.workers.kernels.table import NATIVE, ROW_STEPS, KernelTable
from expertflow.workers.packed.packing import Packing
from msgspec import structs
from torch import nn
from transformers import GptOssConfig, OlmoeConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

from ..checks import draw

WIDTH, INNER = 512, 1024
PARAMETERS = {"gate_up_proj": [2 * INNER, WIDTH], "down_proj": [WIDTH, INNER]}
pytestmark = pytest.mark.skipif(bool(native.missing_reason()), reason=f"no kernels: {native.missing_reason()}")


def packing(name: str, parameter: str, variant: int = 0, **fields: Any) -> Packing:
    rows, columns = PARAMETERS[parameter]
    grid = {} if name[0] == "Q" else {"scales": f"{parameter}_scales", "scale_dtype": "float16", "group_columns": 32}
    given = {"codes": f"{parameter}_codes", **grid, **fields}
    return Packing(parameter=parameter, format=name, rows=rows, columns=columns, variant=variant, **given)


def expert(first: str, down: str, variant: int = 0) -> list[Packing]:
    return [packing(first, "gate_up_proj", variant), packing(down, "down_proj", variant)]


def experts_module() -> Any:
    config = OlmoeConfig(hidden_size=WIDTH, intermediate_size=INNER, num_experts=2, num_experts_per_tok=1)
    with torch.device("meta"):
        return OlmoeExperts(config)


def parts(packings: list[Packing]) -> ModelParts:
    return ModelParts(nn.Linear(8, 8), experts_module(), PARAMETERS, {"weight": torch.bfloat16}, packings)


def table_of(kernels: str, packings: list[Packing]) -> KernelTable:
    return TableMaker(kernels, lambda _: None).make(parts(packings), "bfloat16")


def test_layers_that_are_packed_in_other_ways_have_rows_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("expertflow.workers.kernels.measuring.ROW_STEPS", (1, 2))
    packings = [*expert("Q4_K", "Q6_K", 0), *expert("Q4_K", "Q4_K", 1)]
    table, usual = table_of("auto", packings), NativeKernels.open()
    common = f"expert bfloat16 {WIDTH}x{INNER} SiLUActivation gated"
    assert list(table.choices) == [f"{common} Q4_K+Q6_K", f"{common} Q4_K"]
    assert all(set(step) >= {NATIVE, "left_factor", "linear"} for rows in table.times_us.values() for step in rows[:1])
    assert usual is not None and table.isa in (usual.isa, f"{usual.isa}{DOTS}")
    assert NativeKernels.open(f"{usual.isa}{DOTS}") is None or table.isa.endswith(DOTS)


def test_who_forces_native_kernels_gets_the_bits_of_dequantised_experts() -> None:
    table, usual = table_of("native", expert("int4", "int4")), NativeKernels.open()
    assert usual is not None and table.isa == usual.isa
    assert set(next(iter(table.choices.values()))) == {NATIVE}
    kernels = Kernels(table).expert(experts_module(), PARAMETERS, "bfloat16", expert("int4", "int4"))
    assert [kernels.kernel(rows) for rows in ROW_STEPS] == [NATIVE] * len(ROW_STEPS)


def test_names_say_formats_and_groups() -> None:
    assert packing_name([]) == ""
    assert packing_name(expert("int4", "int4")) == "int4/1x32"
    whole = structs.replace(packing("int8", "down_proj"), group_columns=0)
    assert packing_name([packing("int4", "gate_up_proj"), whole]) == f"int4/1x32+int8/1x{INNER}"


@pytest.mark.parametrize("form", ["int4", "int8", "Q4_0", "Q6_K"])
def test_every_candidate_runs(form: str) -> None:
    (shape,) = parts(packings := expert(form, form)).experts("bfloat16")
    work = PackedExpertWorkload(shape, packings, experts_module(), NativeKernels.open_for_packed())
    assert work.candidates[0] == NATIVE and len(work.candidates) == 4
    for rows in (1, 7):
        work.prepare(rows)
        for kernel in work.candidates:
            work.run(kernel, rows)


def test_a_large_expert_is_timed_by_a_part() -> None:
    large = [structs.replace(own, rows=16 * own.rows, columns=16 * own.columns) for own in expert("int4", "int4")]
    first, down = fitting_packings(large, 16 * INNER)
    assert first.columns == large[0].columns and down.rows == large[1].rows
    assert first.rows == 2 * down.columns < large[0].rows and down.columns % 512 == 0
    assert sum(own.rows * own.row_bytes for own in (first, down)) <= 16 << 20


def test_a_transposed_parameter_is_computed_packed() -> None:
    """Checkpoints hold the experts of gpt-oss as the kernels take them; only the library's parameter is transposed."""
    config = GptOssConfig(hidden_size=WIDTH, intermediate_size=INNER, num_local_experts=2)
    with torch.device("meta"):
        module = GptOssExperts(config)
    packings = [structs.replace(own, transposed=True) for own in expert("int4", "int4")]
    kernels, weights = NativeKernels.open(), {}
    assert kernels is not None
    for own in packings:
        weights |= sample_tensors(own)
    weights |= {"gate_up_proj_bias": draw(0, 2 * INNER, dtype=torch.float32), "down_proj_bias": torch.ones(WIDTH)}
    shapes = {own.parameter: own.shape for own in packings}
    (shape,) = ModelParts(nn.Linear(8, 8), module, shapes, {}, packings).experts("float32")
    work = PackedExpertWorkload(shape, packings, module, kernels)
    assert work.candidates[0] == NATIVE
    own = Kernels(KernelTable(isa=kernels.isa, choices={shape.key: [NATIVE] * 10}))
    layer, rows = own.expert(module, shapes, "float32", packings), draw(1, 3, WIDTH, dtype=torch.float32)
    found = torch.empty_like(rows)
    layer.run_native(module, [weights], [(0, 3)], rows, found)
    unpacked = layer.unpack(weights)
    inner = module._apply_gate(rows @ unpacked["gate_up_proj"] + weights["gate_up_proj_bias"])
    torch.testing.assert_close(found, inner @ unpacked["down_proj"] + weights["down_proj_bias"], rtol=1e-4, atol=1e-4)


def test_rows_in_lockstep_have_the_bits_that_they_have_alone() -> None:
    """Few rows with a packed expert are computed in another way than many: rows of several requests are not counted."""
    kernels, packings = NativeKernels.open_for_packed(), expert("int4", "Q4_0")
    assert kernels is not None
    unpacker = NativeUnpacker(kernels, packings, torch.bfloat16)
    own = ExpertKernels(lambda rows: NATIVE, kernels, "silu", unpacker)
    weights = {name: tensor for one in packings for name, tensor in sample_tensors(one).items()}
    rows = [draw(count, count, WIDTH, dtype=torch.bfloat16) for count in (1, 2, 7, 9, 3, 1)]
    segments = [Segment(number // 4, NATIVE, own, each, torch.empty_like(each)) for number, each in enumerate(rows)]
    layer = LockstepLayer(0, None, None, Lockstep(), own)  # pyright: ignore[reportArgumentType]
    layer._run_together(experts_module(), {0: weights, 1: weights}, segments)
    for segment in segments:
        alone = torch.empty_like(segment.rows)
        kernels.experts("silu", [unpacker.keep_packed(weights)], [(0, len(alone))], segment.rows, alone)
        assert torch.equal(segment.products, alone)
