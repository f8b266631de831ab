"""I1d: a batch-invariant row has the same bits alone and in any batch, in every dtype, for every family.

The batches run over a quarter of the slots, and rows join, leave and split; alone every expert is resident.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.configs.checks import KERNELS
from expertflow.tests.lockstep.lives import (
    Life,
    differing,
    live_alone,
    live_alone_with_prefixes,
    live_together,
    surveyed,
)
from expertflow.tests.models.families import FAMILIES, save_tiny
from expertflow.tests.models.nllb import save_nllb
from expertflow.tests.models.switch import save_switch
from expertflow.workers.compute.executor import Executor
from expertflow.workers.compute.experts.layer import run_expert
from expertflow.workers.compute.lockstep.layer import CallRows, LockstepLayer
from expertflow.workers.compute.lockstep.unit import LockstepRow
from expertflow.workers.kernels.native import missing_reason
from expertflow.workers.kernels.table import NATIVE
from expertflow.workers.model.encoder_decoder import new_unit

DTYPES = ("float32", "bfloat16", "float16")
ENCODER_DECODERS: dict[str, Callable[[Path], object]] = {"switch": save_switch, "nllb": save_nllb}
MODELS = (*FAMILIES, *ENCODER_DECODERS)
CASES = [(model, DTYPES[number % 3]) for number, model in enumerate(MODELS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("models")

    @cache
    def saved(model: str) -> Path:
        (root / model).mkdir()
        ENCODER_DECODERS.get(model, lambda path: save_tiny(model, path, seed=3))(root / model)
        return root / model

    return saved


def check(path: Path, dtype: str, batch: int, kernel: str = "") -> Life:
    survey = surveyed(path, dtype, kernel)
    life = live_together(survey, survey.expert_count // 4, batch)
    assert differing(life.bits, live_alone(survey, life)) == []
    return life


@pytest.mark.parametrize(("model", "dtype"), CASES)
def test_a_row_has_the_same_bits_alone_and_among_nine(
    folder: Callable[[str], Path], model: str, dtype: str
) -> None:
    """Sliding windows, latent attention, linear attention, encoders: each row's forward is its own."""
    life = check(folder(model), dtype, 9)
    assert life.digests.most == 9


@pytest.mark.slow
@pytest.mark.parametrize(("model", "dtype"), list(itertools.product(MODELS, DTYPES)))
def test_a_row_has_the_same_bits_alone_and_among_nine_whole_product(
    folder: Callable[[str], Path], model: str, dtype: str
) -> None:
    check(folder(model), dtype, 9)


CHUNK = 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["qwen3_moe", "deepseek_v3"])
def test_a_prompt_in_chunks_has_the_same_bits_alone_and_in_a_batch(
    folder: Callable[[str], Path], model: str, dtype: str
) -> None:
    """Among others all chunks run in one step, alone each in a step of its own: the forwards are the same."""
    survey = surveyed(folder(model), dtype)
    life = live_together(survey, survey.expert_count // 4, 7, chunk=CHUNK)
    assert differing(life.bits, live_alone(survey, life, chunk=CHUNK)) == []
    if dtype == "float32":
        assert differing(life.bits, live_alone(survey, life)), "chunks have shapes of their own"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["qwen3_moe", "deepseek_v3"])
def test_copied_chunks_change_no_bit(folder: Callable[[str], Path], model: str, dtype: str) -> None:
    """A chunk has the same bits in every row that begins with it, so a row may take it from another."""
    survey = surveyed(folder(model), dtype)
    life = live_together(survey, survey.expert_count // 4, 7, chunk=CHUNK)
    assert differing(life.bits, live_alone_with_prefixes(survey, life, CHUNK)) == []


@pytest.mark.parametrize("batch", [2, 5, 8, *(pytest.param(batch, marks=pytest.mark.slow) for batch in (3, 4, 6, 7))])
def test_the_size_of_the_batch_changes_no_bit(folder: Callable[[str], Path], batch: int) -> None:
    check(folder("qwen3_moe"), "bfloat16", batch)


@pytest.mark.parametrize(
    ("dtype", "kernel"),
    [
        pytest.param(dtype, kernel, marks=() if (i + j) % 3 == 0 else pytest.mark.slow)
        for i, dtype in enumerate(DTYPES)
        for j, kernel in enumerate(KERNELS)
    ],
)
def test_odd_widths_change_no_bit_on_any_path(tmp_path: Path, dtype: str, kernel: str) -> None:
    """Rows of a shared tensor would begin at odd addresses, and kernels treat such rows in another way."""
    if kernel == NATIVE and missing_reason():
        pytest.skip(missing_reason())
    save_tiny("qwen3_moe", tmp_path, hidden_size=45, moe_intermediate_size=13, head_dim=14, vocab_size=101)
    check(tmp_path, dtype, 5, kernel)


def test_without_the_option_bits_depend_on_the_batch(folder: Callable[[str], Path]) -> None:
    """Else the tests above would prove nothing."""
    for dtype in DTYPES:
        survey = surveyed(folder("qwen3_moe"), dtype)
        life = live_together(survey, survey.expert_count // 4, 9, batch_invariant=False)
        assert differing(life.bits, live_alone(survey, life, batch_invariant=False))


def test_alone_the_option_changes_no_bit(folder: Callable[[str], Path]) -> None:
    """A row alone has the shapes of any other row alone, and the library's layers are the same code."""
    survey = surveyed(folder("qwen3_moe"), "bfloat16")
    life = live_together(survey, survey.expert_count, 3)
    assert differing(live_alone(survey, life, True), live_alone(survey, life, False)) == []


# Mutants: each must be caught


def run_all_rows_in_one_call(self: LockstepLayer, module: Any, experts: list[int], calls: list[CallRows]) -> None:
    """Mutant: an expert computes the rows of all units in one product of torch, as without the option."""
    for expert, weights in (chosen for group in self._feed.stream() for chosen in group):
        segments = [call.segment(expert) for call in calls if expert in call.ranges]
        products = run_expert(module, weights, torch.cat([own.rows for own in segments]))
        for segment, own in zip(segments, products.split([len(own.rows) for own in segments]), strict=True):
            segment.products.copy_(own)


def share_a_unit(self: Executor, step: Any) -> Any:
    """Mutant: rows are padded and run in one tensor."""
    return new_unit(self._model.config, self._abilities, "cpu")


def pad_the_prompt(original: Callable[..., Any]) -> Callable[..., Any]:
    """Mutant: the prompt has a pad before it, which the mask hides."""

    def prepare(self: LockstepRow, row: Any, *others: Any) -> Any:
        step = original(self, row, *others)
        if row.number % 2:
            self.unit._rows[0].pad = 1
            step = self.unit._input([[0, *self.unit._rows[0].token_ids]], is_prefill=True)
        return step

    return prepare


@pytest.mark.parametrize(
    ("where", "name", "mutant"),
    [
        (LockstepLayer, "_run_segments", run_all_rows_in_one_call),
        (Executor, "_new_unit", share_a_unit),
        (LockstepRow, "prepare_prefill", pad_the_prompt(LockstepRow.prepare_prefill)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_mutants_are_caught(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, where: Any, name: str, mutant: Any
) -> None:
    survey = surveyed(folder("qwen3_moe"), "float32")
    with monkeypatch.context() as patched:
        patched.setattr(where, name, mutant)
        life = live_together(survey, survey.expert_count // 4, 9)
    assert differing(life.bits, live_alone(survey, life))
