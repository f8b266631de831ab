"""The kernel of `TritonProduct`. Its arguments are pointers and numbers of a GPU, which Python types do not describe.

Every program computes a tile: rows of one expert times some columns. It finds the expert from the groups, so neither
the host nor another kernel lays tiles out. A tile sums over `in` in one order: no bit depends on what else is launched
(I1a).
"""

from __future__ import annotations

import triton
import triton.language as tl

VARYING = ("slots", "starts", "ends", "groups", "first")
"""Arguments that do not specialize the kernel: another compilation might sum in another order."""


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=VARYING)
def grouped_rows(
    rows, out, memory, slots, starts, ends, groups, first, width_in, width_out,
    slot_stride, weight_start, stride_out, stride_in, bias_start,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, HAS_BIAS: tl.constexpr,
) -> None:  # fmt: skip
    """Compute out[r] = rows[r - first] @ weight of r's group (+ bias), summed in float32. See `GroupedProduct`."""
    tile = tl.program_id(0)
    each = tl.arange(0, GROUPS)
    low = tl.load(starts + each, mask=each < groups, other=0)
    high = tl.load(ends + each, mask=each < groups, other=0)
    tiles = (high - low + ROWS - 1) // ROWS
    group = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    if group < groups:
        before = tl.sum(tl.where(each < group, tiles, 0), 0)
        row = tl.load(starts + group) + (tile - before) * ROWS + tl.arange(0, ROWS)
        real = (row < tl.load(ends + group))[:, None]
        column = tl.program_id(1) * OUT + tl.arange(0, OUT)
        wanted = (column < width_out)[None, :]
        slot = memory + tl.load(slots + group) * slot_stride
        total = tl.zeros((ROWS, OUT), dtype=tl.float32)
        for begin in range(0, width_in, IN):
            place = begin + tl.arange(0, IN)
            inside = place < width_in
            left = rows + (row - first)[:, None] * width_in + place[None, :]
            right = slot + weight_start + column[None, :] * stride_out + place[:, None] * stride_in
            total = tl.dot(
                tl.load(left, mask=real & inside[None, :], other=0.0),
                tl.load(right, mask=wanted & inside[:, None], other=0.0),
                total,
                input_precision="ieee",
            )
        if HAS_BIAS:
            total += tl.load(slot + bias_start + column, mask=column < width_out, other=0.0)[None, :].to(tl.float32)
        tl.store(out + row[:, None] * width_out + column[None, :], total.to(out.dtype.element_ty), mask=real & wanted)
