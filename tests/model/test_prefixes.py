"""Rows that begin with copies of another row's positions, against transformers on each alone (I1b), and mutants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from expertflow.tests.model.replay import TOLERANCE, Replay, prompts
from expertflow.tests.models.families import FAMILIES, tiny_config, tiny_model
from expertflow.workers.model import cache_blocks
from expertflow.workers.model.cache_blocks import RowPrefix, may_cut
from expertflow.workers.model.probing.probe import probe
from expertflow.workers.model.unit import Unit
from torch import Tensor

NOT_COPIED: tuple[str, ...] = ("mixtral", "gpt_oss", "qwen3_next", "llama4_text")
"""Families with windows, chunked attention or recurrent states."""
COPIED = tuple(family for family in FAMILIES if family not in NOT_COPIED)
SEEN = 50 * TOLERANCE
BLOCK = 4
SHARED = 12


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def alike(seed: int, lengths: tuple[int, ...]) -> list[list[int]]:
    """Prompts that share their first twelve ids."""
    texts = prompts(seed, lengths)
    return [texts[0][:SHARED] + text[SHARED:] for text in texts]


def blocks_of(unit: Unit, number: int, count: int) -> list[Any]:
    return [unit.cut(number, BLOCK * index, BLOCK * (index + 1)) for index in range(count)]


def a_life(replay: Replay) -> None:
    """Blocks of a padded row that has decoded; rows that begin with one, two and three, one that begins with none."""
    first = replay.start(0, 1)
    replay.step(first)
    blocks = blocks_of(first, 0, SHARED // BLOCK)
    prefixes = [RowPrefix(blocks, SHARED), RowPrefix(blocks[:2], 7), RowPrefix(), RowPrefix(blocks[:1], BLOCK)]
    unit = replay.start(2, 3, 4, 5, prefixes=prefixes)
    replay.step(unit)
    unit.join(replay.start(6, chunk=5, prefixes=[RowPrefix(blocks, SHARED)]))
    first.join(unit)
    replay.step(first, 2)


def keys_of(cache: Any) -> list[Tensor]:
    return [layer.keys for layer in cache.layers]


@pytest.mark.parametrize("family", FAMILIES)
def test_probe_says_which_families_can_be_copied(family: str) -> None:
    assert probe(tiny_config(family)).copying == (family in COPIED)
    assert family not in COPIED or may_cut(Unit(tiny_config(family)).cache)


@pytest.mark.parametrize("family", COPIED)
def test_rows_with_a_copied_prefix_equal_each_row_alone(family: str) -> None:
    replay = Replay.of(family, alike(9, (14, 19, 14, 17, 9, 16, 29)))
    a_life(replay)
    worst, differing = replay.compare()
    assert worst <= TOLERANCE
    assert differing == 0


def late_by_one(original: Any) -> Any:
    """Mutant: a block is cut one position late."""
    return lambda cache, row, begin, end: original(cache, row, begin + 1, end + 1)


def of_the_next_row(original: Any) -> Any:
    """Mutant: a block is cut out of the other row of the unit."""
    return lambda cache, row, begin, end: original(cache, 1 - row, begin, end)


@pytest.mark.parametrize("mutant", [late_by_one, of_the_next_row])
@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_mutant_cuts_are_caught(family: str, mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expertflow.workers.model.unit.cut", mutant(cache_blocks.cut))
    replay = Replay.of(family, alike(9, (14, 19, 14, 17, 9, 16, 29)))
    a_life(replay)
    assert replay.compare()[0] > SEEN


def test_mutant_padding_on_the_right_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def padded_right(tensor: Tensor, dim: int, length: int) -> Tensor:
        widths = (0, 0) * (tensor.dim() - 1 - dim) + (0, length - tensor.shape[dim])
        return torch.nn.functional.pad(tensor, widths)

    monkeypatch.setattr(cache_blocks, "pad_left", padded_right)
    replay = Replay.of("olmoe", alike(9, (14, 19, 14, 17, 9, 16, 29)))
    a_life(replay)
    assert replay.compare()[0] > SEEN


def test_only_the_rest_is_computed_and_all_of_it_by_rows_with_less_of_a_prefix() -> None:
    model = tiny_model("olmoe")
    replay = Replay(model, alike(9, (14, 16, 13)))
    blocks = blocks_of(replay.start(0), 0, 3)
    unit = Unit(model.config)
    rows = [row.to_request() for row in replay.start(1, 2).rows]
    step = unit.prepare_prefill(rows, prefixes=[RowPrefix(blocks, 12), RowPrefix(blocks, 12)])
    assert step.tokens.positions == [*range(12, 17), *range(9, 14)]
    assert unit.length == 12


def test_blocks_are_copies_that_hold_nothing_else() -> None:
    """A view would keep the memory of a whole unit."""
    replay = Replay(tiny_model("deepseek_v3"), prompts(5))
    unit = replay.start(0, 3)
    keys = keys_of(unit.cut(3, 0, BLOCK))
    before = [tensor.clone() for tensor in keys]
    assert sum(tensor.untyped_storage().nbytes() for tensor in keys) == sum(tensor.nbytes for tensor in keys)
    for tensor in keys_of(unit.cache):
        tensor.fill_(7)
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(keys, before, strict=True))
