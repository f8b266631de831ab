"""Units against transformers on every prompt alone and unpadded (I1b), and the mutants that must not pass for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from expertflow.ipc.messages import RequestRow, Sampling
from expertflow.tests.model.replay import TOLERANCE, Replay, a_life, model_to_run, prompts
from expertflow.tests.models.families import FAMILIES, tiny_model
from expertflow.workers.model import cache_rows as cache_rows
from expertflow.workers.model.growing_cache import CHUNK
from expertflow.workers.model.kv_cost import kv_bytes
from expertflow.workers.model.unit import RowAbilities, Unit, UnitError


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_join_and_leave_equal_each_row_alone(family: str) -> None:
    """A wrong mask, position or state after any row operation shows in a logit."""
    replay = Replay.of(family, prompts(5))
    a_life(replay)
    worst, differing = replay.compare()
    assert len(replay.seen) == 66
    assert worst <= TOLERANCE
    assert differing == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_unit_equals_each_row_alone(family: str) -> None:
    """Rows that cannot move leave by masking: the others must not notice, and keep their order."""
    replay = Replay.of(family, prompts(6), RowAbilities(moving=False))
    unit = replay.start(0, 1, 2, 3)
    replay.step(unit, 2)
    unit.drop([1, 3])
    replay.step(unit, 3)
    unit.take([2])
    replay.step(unit)
    worst, differing = replay.compare()
    assert (unit.numbers, len(replay.seen)) == ([2], 19)
    assert worst <= TOLERANCE
    assert differing == 0


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "qwen3_next"])
def test_equal_lengths_join_where_padding_is_not_exact(family: str) -> None:
    """Recomputing the rows of a broken step one by one ends in joining them again."""
    replay = Replay(tiny_model(family), prompts(7, (9, 9, 9)), RowAbilities(padding=False))
    unit = replay.start(0)
    for number in (1, 2):
        unit.join(replay.start(number))
    replay.step(unit, 3)
    assert replay.compare()[0] <= TOLERANCE
    with pytest.raises(UnitError):
        unit.join(replay.start(0))


class OneColumnOff:
    """A model behind a pad mask that is off by one: a row sees one column of padding, or not its first token."""

    def __init__(self, model: Any, columns: int) -> None:
        self.model, self.config, self.columns = model, model.config, columns

    def forward(self, attention_mask: torch.Tensor, logits_to_keep: int = 0, **inputs: Any) -> Any:
        width = attention_mask.shape[1]
        pads = width - attention_mask.sum(dim=1, keepdim=True)
        shifted = torch.arange(width) >= torch.where(pads > 0, pads + self.columns, 0)
        return self.model(attention_mask=shifted.long(), logits_to_keep=logits_to_keep, **inputs)

    def __call__(self, **inputs: Any) -> Any:
        if "attention_mask" in inputs:
            return self.forward(**inputs)
        return self.model(**inputs)


MUTATED = ["olmoe", "mixtral", "gpt_oss", "deepseek_v3", "qwen3_next", "llama4_text", "jetmoe"]
SEEN = 50 * TOLERANCE


@pytest.mark.parametrize("family", MUTATED)
@pytest.mark.parametrize("columns", [-1, 1])
def test_mutant_mask_off_by_one_is_caught(family: str, columns: int) -> None:
    replay = Replay(OneColumnOff(model_to_run(family), columns), prompts(5))
    a_life(replay)
    assert replay.compare()[0] > SEEN


@pytest.mark.parametrize("family", MUTATED)
def test_mutant_swapped_states_are_caught(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = cache_rows.take

    def swapped(cache: Any, places: list[int]) -> None:
        honest(cache, [places[1], places[0], *places[2:]])

    monkeypatch.setattr(cache_rows, "take", swapped)
    replay = Replay.of(family, prompts(5))
    a_life(replay)
    assert replay.compare()[0] > SEEN


@pytest.mark.parametrize("family", MUTATED)
def test_mutant_join_that_pads_right_is_caught(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def padded_right(tensor: torch.Tensor, dim: int, length: int) -> torch.Tensor:
        widths = (0, 0) * (tensor.dim() - 1 - dim) + (0, length - tensor.shape[dim])
        return torch.nn.functional.pad(tensor, widths)

    monkeypatch.setattr(cache_rows, "pad_left", padded_right)
    replay = Replay.of(family, prompts(5))
    a_life(replay)
    assert replay.compare()[0] > SEEN


def test_mutant_recurrent_state_alone_swapped_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hybrid of the library's own row selection: keys move, recurrent states stay."""
    kept = tuple(field for field in cache_rows._FIELDS[cache_rows.LinearAttentionLayer] if "conv" in field.name)
    monkeypatch.setitem(cache_rows._FIELDS, cache_rows.LinearAttentionLayer, kept)
    monkeypatch.setattr(cache_rows, "_require_known_layer", lambda layer, index: None)
    replay = Replay(tiny_model("qwen3_next"), prompts(5, (5, 17, 11)))
    unit = replay.start(0, 1, 2)
    unit.take([1, 0, 2])
    replay.step(unit, 2)
    assert replay.compare()[0] > SEEN


def row(number: int, *token_ids: int, generated: int = 0) -> RequestRow:
    return RequestRow(number, list(token_ids), generated, Sampling())


def test_step_tokens_leave_pads_out_row_by_row() -> None:
    """Routes, statistics and needs are made of these; a pad among them would load experts that nobody needs."""
    unit = Unit(tiny_model("olmoe").config)
    step = unit.prepare_prefill([row(7, 11, 12), row(9, 21, 22, 23)])
    assert step.input_ids.tolist() == [[0, 11, 12], [21, 22, 23]]
    assert step.position_ids.tolist() == [[0, 0, 1], [0, 1, 2]]
    assert step.attention_mask.tolist() == [[0, 1, 1], [1, 1, 1]]
    assert step.tokens.real is not None
    assert step.tokens.real.tolist() == [False, True, True, True, True, True]
    assert step.tokens.token_ids == [11, 12, 21, 22, 23]
    assert step.tokens.rows == [7, 7, 9, 9, 9]
    assert step.tokens.positions == [0, 1, 0, 1, 2]


def test_step_tokens_of_a_decode_step_are_all_real() -> None:
    model = tiny_model("olmoe")
    unit = Unit(model.config)
    unit.run(model, unit.prepare_prefill([row(7, 11, 12), row(9, 21, 22, 23)]))
    unit.append([13, 24])
    step = unit.prepare_step()
    assert step.tokens.real is None
    assert (step.tokens.token_ids, step.tokens.rows, step.tokens.positions) == ([13, 24], [7, 9], [2, 3])
    assert step.attention_mask.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]


def test_step_tokens_leave_out_rows_that_left_a_frozen_unit() -> None:
    model = tiny_model("olmoe")
    unit = Unit(model.config, RowAbilities(moving=False))
    unit.run(model, unit.prepare_prefill([row(7, 11), row(9, 21)]))
    unit.append([12, 22])
    unit.drop([7])
    step = unit.prepare_step()
    assert step.tokens.real is not None
    assert step.tokens.real.tolist() == [False, True]
    assert (step.tokens.token_ids, step.tokens.rows, step.tokens.positions) == ([22], [9], [1])
    assert unit.run(model, step).shape == (1, 128)


def test_recomputed_row_goes_on_at_its_output_index() -> None:
    """After a death a row comes back with what it generated; its randomness must not start again."""
    unit = Unit(tiny_model("olmoe").config)
    unit.prepare_prefill([row(1, 5, 6, 7, generated=2)])
    assert unit.output_indices == [2]
    unit.append([8])
    assert unit.output_indices == [3]


def test_longest_row_takes_its_columns_along() -> None:
    """Without trimming, a unit would keep paying for its longest row ever."""
    replay = Replay(tiny_model("olmoe"), prompts(5))
    unit = replay.start(0, 3)
    position = unit.kv_bytes // 2 // CHUNK
    unit.drop([3])
    assert (unit.length, unit.rows[0].pad) == (5, 0)
    assert unit.kv_bytes == position * 5


def test_split_of_all_rows_takes_them_in_the_order_asked_for() -> None:
    replay = Replay(tiny_model("gpt_oss"), prompts(5))
    unit = replay.start(0, 1, 2)
    other = unit.split([2, 0, 1])
    assert (unit.numbers, other.numbers) == ([], [2, 0, 1])
    replay.step(other)
    assert replay.compare()[0] <= TOLERANCE


def test_unit_is_empty_after_its_last_row_left_and_others_may_join() -> None:
    replay = Replay(tiny_model("gpt_oss"), prompts(5))
    unit = replay.start(0, 1)
    unit.drop([0, 1])
    assert (unit.numbers, unit.kv_bytes, unit.length) == ([], 0, 0)
    unit.join(replay.start(2))
    replay.step(unit)
    assert replay.compare()[0] <= TOLERANCE


def test_row_cannot_be_in_a_unit_twice() -> None:
    """Its tokens would go to whichever comes first."""
    replay = Replay(tiny_model("olmoe"), prompts(5))
    unit = replay.start(0, 1)
    with pytest.raises(UnitError):
        unit.join(replay.start(1))
    assert unit.numbers == [0, 1]


@pytest.mark.parametrize("numbers", [[3], [0, 0], [0, 1, 5]])
def test_taking_rows_that_are_not_there_changes_nothing(numbers: list[int]) -> None:
    replay = Replay(tiny_model("olmoe"), prompts(5))
    unit = replay.start(0, 1)
    with pytest.raises(UnitError):
        unit.take(numbers)
    assert unit.numbers == [0, 1]


def test_failed_forward_leaves_the_unit_broken() -> None:
    """Some layers have cached the step and some have not: stepping again would be silently wrong."""
    model = tiny_model("olmoe")
    replay = Replay(model, prompts(5))
    unit = replay.start(0, 1)
    step = unit.prepare_step()
    step.position_ids.resize_(3, 1)
    with pytest.raises(RuntimeError):
        unit.run(model, step)
    assert unit.broken
    for forbidden in (unit.prepare_step, lambda: unit.take([0]), lambda: unit.join(replay.start(2))):
        with pytest.raises(UnitError):
            forbidden()


@pytest.mark.parametrize("rows", [[], [row(1)], [row(1, 5), row(2, 5, 6)]])
def test_rows_that_cannot_share_a_unit_are_refused(rows: list[RequestRow]) -> None:
    with pytest.raises(UnitError):
        Unit(tiny_model("olmoe").config, RowAbilities(padding=False)).prepare_prefill(rows)


def test_prefill_makes_logits_of_the_newest_position_only() -> None:
    """[rows, columns, vocabulary] would be gigabytes for a long prompt and a real vocabulary."""
    model = tiny_model("olmoe")
    shapes: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda _, inputs, output: shapes.append(output.shape))  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    Replay(model, prompts(5)).start(0, 1)
    assert shapes == [torch.Size((2, 1, 128))]


@pytest.mark.parametrize("family", FAMILIES)
def test_measured_cost_is_what_the_cache_holds(family: str) -> None:
    """The KV budget is kept by this number."""
    model = tiny_model(family)
    cost = kv_bytes(model.config, torch.float32)
    replay = Replay(model, prompts(5))
    unit = replay.start(0, 1, 3)
    for _ in range(2):
        replay.step(unit)
        held = unit.kv_bytes
        assert held == cost.bytes_of(3, unit.length)
        assert held <= 3 * (cost.per_position_bytes * unit.length + cost.per_row_bytes)
