"""The table: a choice is a function of shape, dtype and rows, and the rule is that of before."""

from __future__ import annotations

import msgspec
import pytest
from expertflow.workers.kernels.table import (
    FLOAT32_TILES,
    KERNELS,
    LEFT_FACTOR,
    LINEAR,
    NATIVE,
    ROW_STEPS,
    ExpertShape,
    KernelTable,
    LinearShape,
    forced_choices,
    library_candidates,
)
from hypothesis import given
from hypothesis import strategies as st

HALF = LinearShape(48, 32, "bfloat16")
WHOLE = LinearShape(48, 32, "float32")
TRANSPOSED = ExpertShape(
    width=32, inner=48, dtype="bfloat16", gated=True, transposed=True, bias=True, activation="own"
)


@pytest.mark.parametrize(("rows", "kernel"), [(1, LEFT_FACTOR), (192, LEFT_FACTOR), (193, LINEAR)])
def test_without_a_measurement_few_rows_of_16_bits_stream_the_weight(rows: int, kernel: str) -> None:
    assert KernelTable().kernel_for(HALF, rows) == kernel
    assert KernelTable().kernel_for(WHOLE, rows) == KernelTable().kernel_for(TRANSPOSED, rows) == LINEAR


@given(st.lists(st.sampled_from(KERNELS), min_size=10, max_size=10), st.integers(1, 2000))
def test_between_two_steps_the_choice_of_the_lower_one_holds(choices: list[str], rows: int) -> None:
    table = KernelTable(choices={HALF.key: choices})
    step = max(step for step in ROW_STEPS if step <= rows)
    assert table.kernel_for(HALF, rows) == table.kernel_for(HALF, step) == choices[ROW_STEPS.index(step)]
    assert msgspec.json.decode(msgspec.json.encode(table), type=KernelTable).kernel_for(HALF, rows) == table.kernel_for(
        LinearShape(48, 32, "bfloat16"), rows
    ), "whichever process asks"


def test_no_rows_are_no_error() -> None:
    assert KernelTable(choices={HALF.key: [NATIVE] * 10}).kernel_for(HALF, 0) == NATIVE


def test_shapes_that_differ_in_anything_have_different_keys() -> None:
    linear = [LinearShape(48, 32, "bfloat16"), LinearShape(32, 48, "bfloat16"), LinearShape(48, 32, "float16")]
    fields = {"width": 64, "inner": 64, "dtype": "float16", "gated": False, "transposed": False, "bias": False}
    others = [msgspec.structs.replace(TRANSPOSED, **{name: value}) for name, value in fields.items()]
    shapes = [*linear, TRANSPOSED, *others, msgspec.structs.replace(TRANSPOSED, activation="SiLUActivation")]
    assert len({shape.key for shape in shapes}) == len(shapes)


def test_a_forced_kernel_leaves_shapes_that_it_cannot_take_to_the_rule() -> None:
    assert library_candidates(WHOLE) == [LEFT_FACTOR, LINEAR]
    assert library_candidates(TRANSPOSED) == [LINEAR, FLOAT32_TILES]
    assert forced_choices(HALF, FLOAT32_TILES, library_candidates(HALF)) == [FLOAT32_TILES] * 10
    assert forced_choices(WHOLE, FLOAT32_TILES, library_candidates(WHOLE)) == [LINEAR] * 10
    assert forced_choices(TRANSPOSED, LEFT_FACTOR, library_candidates(TRANSPOSED)) == [LINEAR] * 10
    assert forced_choices(HALF, NATIVE, library_candidates(HALF)) == [LEFT_FACTOR] * 8 + [LINEAR] * 2
