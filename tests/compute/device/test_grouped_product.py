"""Experts of a layer in one product: what the groups say goes where they say, and the kernel of a GPU gives what a loop
over experts gives (run by Triton's interpreter, and compiled for GPUs that are not here)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from expertflow.tests.compute.device.product_cases import TABLES, check
from expertflow.workers.compute.device.cuda import open_grouped_product
from expertflow.workers.compute.device.grouped_product import group_routes, plain_product
from expertflow.workers.compute.experts.expert_rows import rows_by_expert
from hypothesis import given, settings
from hypothesis import strategies as st

KINDS = pytest.mark.parametrize(("transposed", "bias"), [(False, False), (True, True)], ids=["plain", "turned, bias"])


@KINDS
@pytest.mark.parametrize("table", TABLES)
def test_rows_meet_the_experts_of_their_groups(table: str, transposed: bool, bias: bool) -> None:
    check(plain_product, table, torch.float32, transposed, bias)


def test_the_kernel_of_a_gpu_gives_the_same() -> None:
    """I1b of its arithmetic and I1a of its sums, in Triton's interpreter: it must be on before Triton is imported."""
    pytest.importorskip("triton", reason="Triton is for Linux on x86_64")
    script = Path(__file__).parent / "product_cases.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-P", str(script)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]


def test_where_no_kernel_can_be_built_there_is_none(caplog: pytest.LogCaptureFixture) -> None:
    """And that is known before any row is served: here Triton has no GPU to build for, elsewhere no compiler."""
    assert open_grouped_product(4, torch.bfloat16, torch.device("cpu")) is None
    assert "no grouped kernel on cpu (" in caplog.text


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from expertflow.workers.compute.device.triton_kernel import VARYING, grouped_rows

architecture, kind, rows = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
names = grouped_rows.arg_names
consts = dict(stride_in=1, GROUPS=128, ROWS=rows, OUT=64, IN=64, HAS_BIAS=False)
types = dict(rows=f"*{kind}", out=f"*{kind}", memory=f"*{kind}", slots="*i64", starts="*i64", ends="*i64")
types |= dict.fromkeys(("slot_stride", "weight_start"), "i64") | dict.fromkeys(consts, "constexpr")
signature = {name: types.get(name, "i32") for name in names}
aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in (*VARYING, *consts)}
places = {(names.index(name),): value for name, value in consts.items()}
source = ASTSource(fn=grouped_rows, signature=signature, constexprs=places, attrs=aligned)
target = GPUTarget("cuda", architecture, 32)
compiled = triton.compile(source, target=target, options={"num_warps": 4, "num_stages": 3})
print(len(compiled.asm["cubin"]), compiled.metadata.shared, "mma" in compiled.asm["ptx"])
"""


@pytest.mark.parametrize(
    ("architecture", "kind", "rows", "tensor_cores"),
    [
        ("80", "bf16", "16", True),
        pytest.param("80", "fp32", "16", False, marks=pytest.mark.slow),
        pytest.param("90", "bf16", "128", True, marks=pytest.mark.slow),
        pytest.param("90", "fp16", "64", True, marks=pytest.mark.slow),
    ],
)
def test_the_kernel_compiles_for_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, kind: str, rows: str, tensor_cores: bool
) -> None:
    """To machine code, within the shared memory that every such GPU has, with tensor cores where they serve."""
    pytest.importorskip("triton", reason="Triton is for Linux on x86_64")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    script = tmp_path / "compile.py"
    script.write_text(COMPILE)  # Triton reads the source of what it compiles from its file
    command = [sys.executable, "-P", str(script), architecture, kind, rows]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr[-3000:]
    code_bytes, shared_bytes, has_mma = ended.stdout.split()
    assert int(code_bytes) > 1000 and int(shared_bytes) <= 99 * 1024 and has_mma == str(tensor_cores)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(4, 9), st.integers(0, 10**6))
def test_a_device_lays_rows_out_as_the_host_does(tokens: int, top_k: int, experts: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    routes = random.permuted(np.tile(np.arange(experts), (tokens, 1)), axis=1)[:, :top_k]
    slots = random.permutation(experts + 3)[:experts]
    pairs, places, groups = group_routes(torch.from_numpy(routes), torch.from_numpy(slots))
    rows = rows_by_expert(routes)
    expected = {expert: rows.pair_of_row[a : a + b] for expert, a, b in _real_rows(routes, rows.experts, rows.bounds)}
    for expert, (slot, start, end) in enumerate(groups.table.t().tolist()):
        assert slot == slots[expert]
        assert pairs[start:end].tolist() == expected.get(expert, np.empty(0)).tolist()
    assert pairs[places].tolist() == list(range(tokens * top_k)) and groups.rows == tokens * top_k


def _real_rows(routes: np.ndarray, experts: list[int], bounds: list[int]) -> list[tuple[int, int, int]]:
    """Expert, its first row and how many of its rows are no spare ones."""
    counts = np.bincount(routes.ravel())
    return [(expert, bounds[i], int(counts[expert])) for i, expert in enumerate(experts)]
