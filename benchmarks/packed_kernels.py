"""How fast are experts multiplied as they are stored, beside 16-bit ones, for each format and number of rows?

python -m expertflow.benchmarks.packed_kernels --out docs/results/packed-kernels.json

One thread, counted in its own processor time, so that other work on the machine hardly matters. A call computes the
eight experts that a token has; experts are taken in turn from more memory than a cache holds. `bound` is the ratio of
bytes, which a gain cannot exceed where memory is what bounds: with one row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .machine import RESTRICTED, restrict_instructions
from .models import MODEL_Q, MODEL_R
from .report import show_table, write_json

ROWS = (1, 2, 4, 8, 16, 32, 128)
POOL_BYTES = 400_000_000
EXPERTS = 8
REPEATS, CALLS = 7, 3
Work = Callable[[int], object]
"""Computes `EXPERTS` experts; takes the number of the call, by which experts are in turn."""
SHAPES = {
    "r": (MODEL_R["hidden_size"] or 0, MODEL_R["intermediate_size"] or 0),
    "q": (int(MODEL_Q["hidden_size"]), int(MODEL_Q["moe_intermediate_size"])),
}
"""Model -> width and inner width of its experts."""


class Format(NamedTuple):
    """A format as checkpoints have it."""

    name: str
    scale_dtype: str = ""
    group_rows: int = 1
    group_columns: int = 0
    has_zeros: bool = False


FORMATS = {
    "float8 block 128": Format("float8", "float32", 128, 128),
    "float8 channel": Format("float8", "float32"),
    "MXFP4 as gpt-oss": Format("float4", "exponent", 1, 32),
    "NVFP4": Format("float4", "float8_e4m3", 1, 16),
    "int4 group 32": Format("int4", "bfloat16", 1, 32),
    "int4 group 128": Format("int4", "bfloat16", 1, 128),
    "int4 group 128, zeros": Format("int4", "float16", 1, 128, True),
    "int8 channel": Format("int8", "bfloat16"),
    **{name: Format(name) for name in ("Q4_0", "IQ4_NL", "MXFP4", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", choices=RESTRICTED, default="native", help="instructions that libraries may use")
    parser.add_argument("--model", choices=SHAPES, default="r", help="whose experts")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="rows of each expert")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--variant", default="", help="of the native kernels, such as amx; empty: the best one")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    restrict_instructions(arguments.isa)
    width, inner = SHAPES[arguments.model]
    table = measure(width, inner, arguments.rows, arguments.formats, arguments.variant)
    title = f"an expert of model {arguments.model.upper()}, microseconds of one thread, {arguments.isa}"
    show_table(title, [_shown(row) for row in table])
    used = _kernels(arguments.variant).isa
    write_json(arguments.out, {"isa": arguments.isa, "variant": used, "model": arguments.model, "rows": table})


def measure(width: int, inner: int, counts: list[int], names: list[str], variant: str = "") -> list[dict[str, Any]]:
    """Return a row for each format: microseconds an expert by rows, times faster than in bfloat16, GB/s with one row.

    `variant`: of the native kernels; empty: the best one for packed experts.
    """
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dense, size = _dense_pool(width, inner), 6 * width * inner
    usual = {count: _native_work(dense, width, count, variant) for count in counts}
    table = [_row("bfloat16, torch", size, size, usual, {n: _library_work(dense, width, n) for n in counts})]
    for name in names:
        pool, stored = _packed_pool(FORMATS[name], width, inner)
        works = {count: _native_work(pool, width, count, variant) for count in counts}
        table.append(_row(name, size, stored, usual, works))
    return table


def _row(name: str, size: int, stored: int, usual: dict[int, Work], works: dict[int, Work]) -> dict[str, Any]:
    """Return the row of a format; `usual` are the same products in bfloat16, timed in turns with them."""
    times = {count: _best_us([usual[count], work]) for count, work in works.items()}
    return {
        "format": name,
        "bound": round(size / stored, 2),
        "gb_s": round(stored / times[min(times)][1] / 1e3, 1),
        "dense_us": {str(count): round(dense, 1) for count, (dense, _) in times.items()},
        "us": {str(count): round(own, 1) for count, (_, own) in times.items()},
        "gain": {str(count): round(dense / own, 2) for count, (dense, own) in times.items()},
    }


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with microseconds and gain in one cell."""
    cells = {f"{count} rows": f"{us:.0f} ({row['gain'][count]}x)" for count, us in row["us"].items()}
    return {"format": row["format"], "bound": row["bound"], "GB/s": row["gb_s"], **cells}


def _native_work(pool: list[Any], width: int, count: int, variant: str) -> Work:
    """Return a call of the native kernels for several experts, `count` rows each."""
    import torch

    kernels, rows = _kernels(variant), torch.randn(count * EXPERTS, width).to(torch.bfloat16)
    products, bounds = torch.empty_like(rows), [(count * i, count * (i + 1)) for i in range(EXPERTS)]
    groups = [pool[i : i + EXPERTS] for i in range(0, len(pool) - EXPERTS + 1, EXPERTS)]
    return lambda turn: kernels.experts("silu", groups[turn % len(groups)], bounds, rows, products)


def _library_work(pool: list[Any], width: int, count: int) -> Work:
    """Return the same with the library's products, an expert at a time."""
    import torch
    from expertflow.workers.kernels.products import project_left_factor

    rows = torch.randn(count, width).to(torch.bfloat16)

    def compute(turn: int) -> None:
        for i in range(EXPERTS):
            weights = pool[(turn * EXPERTS + i) % len(pool)]
            gate, up = project_left_factor(rows, weights["gate_up_proj"], None).chunk(2, dim=1)
            project_left_factor(torch.nn.functional.silu(gate) * up, weights["down_proj"], None)

    return compute


def _best_us(works: list[Work]) -> list[float]:
    """Return the least microseconds an expert of each, of processor time.

    They are timed in turns, some calls each, since how fast a core is changes; the first turn is not counted.
    """
    times: list[list[float]] = [[] for _ in works]
    for turn in range(REPEATS + 1):
        for work, own in zip(works, times, strict=True):
            begun_s = time.thread_time()
            for call in range(CALLS):
                work(turn * CALLS + call)
            own.append(time.thread_time() - begun_s)
    return [1e6 * min(own[1:]) / (CALLS * EXPERTS) for own in times]


def _kernels(variant: str) -> Any:
    from expertflow.workers.kernels.native import NativeKernels, missing_reason

    kernels = NativeKernels.open(variant) if variant else NativeKernels.open_for_packed()
    if kernels is None:
        raise SystemExit(f"no kernels: {missing_reason()}")
    return kernels


def _dense_pool(width: int, inner: int) -> list[Any]:
    import torch

    one = {"gate_up_proj": torch.randn(2 * inner, width) / 32, "down_proj": torch.randn(width, inner) / 32}
    small = {name: weight.to(torch.bfloat16) for name, weight in one.items()}
    count = max(EXPERTS, POOL_BYTES // (6 * width * inner))
    return [{name: weight.clone() for name, weight in small.items()} for _ in range(count)]


def _packed_pool(layout: Format, width: int, inner: int) -> tuple[list[Any], int]:
    """Return packed experts, and the bytes of one."""
    from expertflow.workers.kernels.packed_matrix import PackedMatrix
    from expertflow.workers.kernels.packed_workloads import sample_tensors

    packings = [_packing(layout, "gate_up_proj", 2 * inner, width), _packing(layout, "down_proj", width, inner)]
    tensors = [sample_tensors(packing) for packing in packings]
    size = sum(tensor.numel() * tensor.itemsize for held in tensors for tensor in held.values())

    def copy() -> dict[str, Any]:
        copies = [{name: tensor.clone() for name, tensor in held.items()} for held in tensors]
        return {own.parameter: PackedMatrix(own, held) for own, held in zip(packings, copies, strict=True)}

    return [copy() for _ in range(max(EXPERTS, POOL_BYTES // size))], size


def _packing(layout: Format, parameter: str, rows: int, columns: int) -> Any:
    from expertflow.workers.packed.packing import Packing

    return Packing(
        parameter=parameter, format=layout.name, rows=rows, columns=columns, codes="codes",
        scales="scales" if layout.scale_dtype else "", scale_dtype=layout.scale_dtype, group_rows=layout.group_rows,
        group_columns=layout.group_columns, zeros="zeros" if layout.has_zeros else "",
    )  # fmt: skip


if __name__ == "__main__":
    main()
