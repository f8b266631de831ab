"""Prompts that are prefilled in chunks, against transformers on each prompt alone (I1b), and mutants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from expertflow.ipc.messages import RequestRow, Sampling
from expertflow.tests.model.replay import TOLERANCE, Replay, prompts
from expertflow.tests.models.families import FAMILIES, tiny_config, tiny_model
from expertflow.workers.model.probing.probe import probe
from expertflow.workers.model.unit import Unit, UnitError

WHOLE_ONLY: tuple[str, ...] = ()
"""Families whose caches cannot be extended by many tokens at once."""
CHUNKED = tuple(family for family in FAMILIES if family not in WHOLE_ONLY)
SEEN = 50 * TOLERANCE


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("family", FAMILIES)
def test_probe_says_which_families_can_be_extended(family: str) -> None:
    assert probe(tiny_config(family)).extending == (family in CHUNKED)


def a_life(replay: Replay, chunk: int) -> None:
    """Rows in chunks that join a running unit: shorter than a chunk, a multiple of it, one longer than a multiple."""
    unit = replay.start(0, 1)
    replay.step(unit)
    for number in range(2, len(replay.texts)):
        unit.join(replay.start(number, chunk=chunk))
        replay.step(unit)


@pytest.mark.parametrize("family", CHUNKED)
def test_prompt_in_chunks_equals_the_prompt_alone(family: str) -> None:
    """A position, mask or state that is wrong after a chunk shows in a logit."""
    replay = Replay.of(family, prompts(8, (5, 9, 16, 25, 31, 3)))
    a_life(replay, 8)
    worst, differing = replay.compare()
    assert worst <= TOLERANCE
    assert differing == 0


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "deepseek_v3"])
def test_mutant_chunk_that_begins_a_column_late_is_caught(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest: Any = Unit._next_columns

    def late(self: Unit) -> list[list[int]]:
        columns = honest(self)
        return [row[1:] + row[:1] for row in columns] if self._filling else columns

    monkeypatch.setattr(Unit, "_next_columns", late)
    replay = Replay.of(family, prompts(8, (5, 9, 16, 25)))
    a_life(replay, 8)
    assert replay.compare()[0] > SEEN


def test_step_tokens_of_a_chunk_are_those_that_it_runs() -> None:
    model = tiny_model("olmoe")
    unit = Unit(model.config)
    step = unit.prepare_prefill([RequestRow(7, [11, 12, 13, 14, 15], 0, Sampling(), chunk=2)])
    seen = []
    while True:
        unit.run(model, step)
        seen.append((step.tokens.token_ids, step.tokens.positions))
        if not unit.filling:
            break
        step = unit.prepare_step()
    assert seen == [([11, 12], [0, 1]), ([13, 14], [2, 3]), ([15], [4])]
    assert unit.kv_bytes == Replay(model, [[11, 12, 13, 14, 15]]).start(0).kv_bytes


def test_unit_in_mid_prefill_cannot_be_joined() -> None:
    replay = Replay(tiny_model("olmoe"), prompts(5))
    unit = replay.start(0)
    other = Unit(replay.model.config)
    other.run(replay.model, other.prepare_prefill([RequestRow(1, replay.texts[1], 0, Sampling(), chunk=8)]))
    assert other.filling
    with pytest.raises(UnitError, match="unfinished"):
        unit.join(other)
    with pytest.raises(UnitError, match="unfinished"):
        other.join(unit)


def test_rows_prefilled_together_have_no_chunks() -> None:
    model = tiny_model("olmoe")
    unit = Unit(model.config)
    rows = [RequestRow(number, text, 0, Sampling(), chunk=4) for number, text in enumerate(prompts(5, (9, 6)))]
    unit.run(model, unit.prepare_prefill(rows))
    assert not unit.filling
    assert unit.length == 9
