"""Every stored byte under every kind of scale becomes what transformers makes of it, in every dtype, whatever the block
of rows it comes in."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from expertflow.errors import CheckpointError
from expertflow.tests.checkpoint.test_casting import TYPES, bits, raw
from expertflow.workers.checkpoint.quantisation_config import block_of
from expertflow.workers.checkpoint.row_conversion import float8_values, make_dequantiser, scale_rows
from expertflow.workers.checkpoint.survey import FLOAT4_PAIRS, Piece, Scales
from expertflow.workers.model.library_quantizer import BlockFp8Dequantize
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

FP8 = torch.float8_e4m3fn
SCALES = [1.0, 0.37, 2**-6, 2.0**-9, -1.5, 0.0, 1e-38, 1e-42, 2.0**-133, 3e38, 7e-3, float("inf"), float("nan")]
EVERY_BYTE = torch.arange(256, dtype=torch.int32).to(torch.uint8)


def dequantised(
    values: torch.Tensor, scales: torch.Tensor, piece: Piece, dtype: str, rows_at_once: int = 1 << 30
) -> torch.Tensor:
    """By our own code, in blocks of rows."""
    grid = piece.scales
    assert grid is not None
    high, wide = piece.source_shape
    shape = [wide, high] if piece.operation == "transpose" else [high, wide]
    target = np.zeros(piece.count_bytes, dtype=np.uint8)
    stored, factors = raw(values).reshape(high, -1), raw(scales).reshape(grid.grid[0], -1)
    dequantiser = make_dequantiser(piece, dtype)
    for at in range(0, high, rows_at_once):
        rows = range(at, min(high, at + rows_at_once))
        own = scale_rows(grid, rows)
        dequantiser.convert(
            stored[rows.start : rows.stop].reshape(-1), factors[own.start : own.stop].reshape(-1), target, piece, rows
        )
    return torch.from_numpy(target).view(TYPES[dtype]).view(shape)


def piece_of(shape: list[int], stored: str, grid: list[int], block: list[int], scale_dtype: str, dtype: str) -> Piece:
    items = shape[0] * shape[1]
    return Piece(
        tensor=0,
        position_bytes=0,
        count_bytes=items * TYPES[dtype].itemsize,
        source_bytes=items // 2 if stored == FLOAT4_PAIRS else items,
        source_dtype=stored,
        source_shape=shape,
        operation="cast",
        scales=Scales(place=1, dtype=scale_dtype, grid=grid, block=block),
    )


def library_block(values: torch.Tensor, scales: torch.Tensor, dtype: str) -> torch.Tensor:
    return Fp8Dequantize(SimpleNamespace())._dequantize_one(values, scales, TYPES[dtype])


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert torch.equal(bits(ours), bits(theirs.contiguous()))


def test_every_byte_is_the_float_that_torch_says():
    assert_same(torch.from_numpy(float8_values()), EVERY_BYTE.view(FP8).float())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("scale_dtype", "kind"), [("float32", "F32"), ("bfloat16", "BF16"), ("float16", "F16")])
def test_every_byte_under_float_scales(dtype: str, scale_dtype: str, kind: str):
    values = EVERY_BYTE.view(FP8).repeat(len(SCALES), 1)
    scales = torch.tensor(SCALES)[:, None].to(TYPES[scale_dtype])
    piece = piece_of(list(values.shape), "F8_E4M3", [len(SCALES), 1], [1, 256], scale_dtype, dtype)
    assert_same(dequantised(values, scales, piece, dtype), library_block(values, scales, dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("kind", "view"), [("U8", torch.uint8), ("F8_E8M0", torch.float8_e8m0fnu)])
def test_every_byte_under_every_exponent(dtype: str, kind: str, view: torch.dtype):
    values = EVERY_BYTE.view(FP8).repeat(256, 1)
    scales = EVERY_BYTE[:, None].view(view)
    piece = piece_of([256, 256], "F8_E4M3", [256, 1], [1, 256], kind, dtype)
    assert_same(dequantised(values, scales, piece, dtype), library_block(values, scales, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_pair_under_every_exponent(dtype: str):
    """MXFP4 as gpt-oss has it: turned. All 65,536 bytes and exponents."""
    blocks = EVERY_BYTE.view(1, 1, 16, 16).repeat(1, 256, 1, 1)
    scales = EVERY_BYTE.view(1, 256, 1).repeat(1, 1, 16)
    piece = piece_of([256, 512], FLOAT4_PAIRS, [256, 16], [1, 32], "U8", dtype)
    turned = msgspec.structs.replace(piece, operation="transpose")
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=TYPES[dtype])[0]
    for rows_at_once in (256, 100, 7):
        assert_same(dequantised(blocks, scales, turned, dtype, rows_at_once), theirs)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_pair_in_rows(dtype: str):
    """As DeepSeek-V4 stores its experts: int8, exponents with NaN, not turned."""
    values = EVERY_BYTE.view(torch.int8).repeat(256, 1)
    scales = EVERY_BYTE.view(256, 1).repeat(1, 16).view(torch.float8_e8m0fnu)
    piece = piece_of([256, 512], FLOAT4_PAIRS, [256, 16], [1, 32], "F8_E8M0", dtype)
    assert_same(dequantised(values, scales, piece, dtype, 100), library_block(values, scales, dtype))


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("rows_at_once", [1, 3, 4, 7, 100])
@pytest.mark.parametrize("shape", [[24, 16], [12, 40], [7, 9], [1, 33], [20, 8]])
def test_blocks_of_any_rows_add_up(shape: list[int], rows_at_once: int, turn: bool):
    """Blocks of 4 rows by 8 columns, those at the edges smaller, against scales spread out by hand."""
    block = [4, 8]
    grid = [-(-size // each) for size, each in zip(shape, block, strict=True)]
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator).to(FP8)
    scales = torch.rand(grid, generator=generator)
    piece = piece_of(shape, "F8_E4M3", grid, block, "float32", "bfloat16")
    piece = msgspec.structs.replace(piece, operation="transpose" if turn else "cast")
    spread = scales.repeat_interleave(4, 0)[: shape[0]].repeat_interleave(8, 1)[:, : shape[1]]
    expected = (values.float() * spread).bfloat16()
    assert_same(dequantised(values, scales, piece, "bfloat16", rows_at_once), expected.t() if turn else expected)


def test_a_smaller_last_block_is_none_though_the_rows_would_divide():
    """192 rows with 2 scales: 128 and 64, as stated. The library takes 96 and 96; where it does not any more, this
    fails, and docs/weights.md can say one thing less."""
    block, shape, grid = [128, 128], [192, 256], [2, 2]
    generator = torch.Generator().manual_seed(0)
    values, scales = torch.randn(shape, generator=generator).to(FP8), torch.rand(grid, generator=generator)
    spread = scales.repeat_interleave(128, 0)[:192].repeat_interleave(128, 1)
    expected = (values.float() * spread).bfloat16()
    piece = piece_of(shape, "F8_E4M3", grid, block_of("weight", shape, grid, block), "float32", "bfloat16")
    assert_same(dequantised(values, scales, piece, "bfloat16", 100), expected)
    stated = SimpleNamespace(quantization_config=SimpleNamespace(weight_block_size=block))
    assert_same(BlockFp8Dequantize(stated)._dequantize_one(values, scales, torch.bfloat16), expected)
    wrong = (library_block(values, scales, "bfloat16") != expected).any(dim=1)
    assert wrong.nonzero().flatten().tolist() == list(range(96, 128))


@pytest.mark.parametrize(
    ("shape", "grid", "stated", "block"),
    [
        ([576, 7168], [5, 56], [128, 128], [128, 128]),  # the last block of rows is half a block
        ([192, 256], [2, 2], [128, 128], [128, 128]),  # not 96 rows, though that would divide evenly
        ([64, 64], [64, 2], [128, 128], [1, 32]),
        ([64, 64], [1, 1], None, [64, 64]),
        ([2048, 768], [16, 6], [128, 128], [128, 128]),
    ],
)
def test_the_block_of_a_grid(shape: list[int], grid: list[int], stated: list[int] | None, block: list[int]):
    assert block_of("weight", shape, grid, stated) == block


@pytest.mark.parametrize("grid", [[5, 2], [0, 2], [2, 100]])
def test_a_grid_that_fits_nothing(grid: list[int]):
    with pytest.raises(CheckpointError, match="do not divide"):
        block_of("weight", [64, 64], grid, [128, 128])
