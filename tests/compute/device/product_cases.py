"""Grouped products against a straight loop in float64; as a script (`python -P product_cases.py`, with Triton's
interpreter switched on before it is imported) all of them through the kernel of a GPU."""

from __future__ import annotations

import itertools

import torch
from expertflow.workers.compute.device.grouped_product import GroupedProduct, Groups, SlotMatrix

SLOTS, IN, OUT, SPARE = 6, 40, 70, 6
DTYPES = {torch.float32: 1e-5, torch.float16: 2e-3}
"""And what may be lost; Triton's interpreter has no products of bfloat16."""


def slot_tensor(dtype: torch.dtype, transposed: bool, bias: bool) -> SlotMatrix:
    stride = OUT * IN + OUT + 2 * SPARE
    memory = torch.randn(SLOTS * stride, generator=torch.Generator().manual_seed(1)).to(dtype)
    shape = (IN, OUT) if transposed else (OUT, IN)
    return SlotMatrix(memory, stride, SPARE, shape, transposed, SPARE + OUT * IN if bias else -1)


def groups_of(table: list[tuple[int, int, int]], layer_rows: int = 64) -> Groups:
    rows = sum(end - start for _, start, end in table)
    return Groups(torch.tensor(table).t().contiguous(), rows, layer_rows)


def straight(rows: torch.Tensor, weights: SlotMatrix, groups: Groups, out: torch.Tensor, first: int) -> torch.Tensor:
    """In float64, one row after the other."""
    expected = out.double().clone()
    for slot, start, end in groups.table.t().tolist():
        own = weights.memory[slot * weights.stride : (slot + 1) * weights.stride].double()
        weight = own[weights.start : weights.start + IN * OUT].view(weights.shape)
        for row in range(start, end):
            expected[row] = (weight.t() if weights.transposed else weight) @ rows[row - first].double()
            if weights.bias_start >= 0:
                expected[row] += own[weights.bias_start : weights.bias_start + OUT]
    return expected


TABLES = {
    "all": [(3, 0, 5), (0, 5, 28), (4, 28, 30), (1, 30, 37)],
    "some are empty": [(3, 0, 0), (0, 0, 21), (5, 21, 21), (4, 21, 37), (2, 37, 37)],
    "rows between stay": [(1, 6, 9), (0, 19, 36)],
    "one row": [(5, 8, 9)],
}


def check(product: GroupedProduct, table: str, dtype: torch.dtype, transposed: bool, bias: bool) -> None:
    weights, groups = slot_tensor(dtype, transposed, bias), groups_of(TABLES[table])
    first = int(groups.table[1].min())
    rows = torch.randn(37 - first, IN, generator=torch.Generator().manual_seed(2)).to(dtype)
    out = torch.full((37, OUT), 7.0, dtype=dtype)
    expected = straight(rows, weights, groups, out, first)
    product(rows, weights, groups, out, first)
    tolerance = DTYPES[dtype]
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance * 10)


def check_same_bits(product: GroupedProduct) -> None:
    """I1a: whatever is launched together."""
    weights, rows = slot_tensor(torch.float32, False, False), torch.randn(37, IN)
    together, apart = torch.empty(37, OUT), torch.empty(37, OUT)
    product(rows, weights, groups_of(TABLES["all"]), together)
    for group in reversed(TABLES["all"]):
        product(rows[group[1] :], weights, groups_of([group]), apart, group[1])
    assert torch.equal(together, apart)


def main() -> None:
    from expertflow.workers.compute.device.triton_product import TritonProduct

    product = TritonProduct(experts=5)
    product.try_out(torch.float32, torch.device("cpu"))
    for table, dtype, kind in itertools.product(TABLES, DTYPES, (False, True)):
        check(product, table, dtype, transposed=kind, bias=kind)
    check_same_bits(product)


if __name__ == "__main__":
    main()
