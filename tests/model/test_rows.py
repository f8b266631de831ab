"""Row operations against caches that were filled that way from the start, and against the library's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from expertflow.workers.model import cache_rows as rows
from expertflow.workers.model.growing_cache import GrowingLayer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

HEADS, WIDTH, WINDOW = 2, 3, 5

LAYERS: dict[str, Callable[[], Any]] = {
    "dynamic": DynamicLayer,
    "growing": GrowingLayer,
    "sliding": lambda: DynamicSlidingWindowLayer(sliding_window=WINDOW),
    "indexed": DynamicIndexedLayer,
    "linear": lambda: LinearAttentionLayer(number_of_states=2),
    "hybrid": LinearAttentionAndFullAttentionLayer,
    "hybrid_sliding": lambda: LinearAttentionAndSlidingWindowAttentionLayer(sliding_window=WINDOW),
}
SHORTER_OR_LONGER = [(2, 3), (3, 9), (9, 3), (4, 5), (5, 4), (8, 8), (1, 12)]


def numbers(batch: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn((batch, *shape), generator=torch.Generator().manual_seed(seed))


def feed(layer: Any, tokens: Tensor, states: Tensor) -> None:
    """Tokens [rows, positions] become keys, values and indexer keys; states [rows] what linear attention remembers."""
    wide = tokens[:, None, :, None]
    if isinstance(layer, DynamicLayer):
        layer.update(wide.expand(-1, HEADS, -1, WIDTH).clone(), wide.expand(-1, HEADS, -1, 1) * 2)
    if isinstance(layer, DynamicIndexedLayer):
        layer.update_indexer(tokens[:, :, None] * 3)
    if isinstance(layer, LinearAttentionLayer):
        for index in range(layer.number_of_states):
            convolved = (states[:, None, None] + index).expand(-1, WIDTH, 4).clone()
            layer.update_conv_state(convolved, index, conv_kernel_size=4)
            layer.update_recurrent_state((states[:, None, None] * 2 + index).expand(-1, HEADS, WIDTH).clone(), index)


def cache_of(kind: str, tokens: Tensor, states: Tensor, steps: int = 1) -> Cache:
    """A cache that got `tokens` as a prompt and, the last `steps` of them, one by one."""
    layer = LAYERS[kind]()
    prompt = tokens.shape[1] - steps
    if prompt:
        feed(layer, tokens[:, :prompt], states)
    for position in range(prompt, tokens.shape[1]):
        feed(layer, tokens[:, position : position + 1], states)
    return Cache(layers=[layer, DummyLayer()])


def left_padded(tokens: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(tokens, (length - tokens.shape[1], 0))


def facts(cache: Cache) -> dict[str, Any]:
    """Everything a layer holds, tensors as lists, so that two caches can be compared bit for bit."""
    found: dict[str, Any] = {}
    for name, value in vars(cache.layers[0]).items():
        each = value if isinstance(value, dict) else {"": value}
        for key, item in each.items():
            found[f"{name}{key}"] = item.tolist() if isinstance(item, Tensor) else item
    if isinstance(cache.layers[0], DynamicLayer):
        found["mask"] = cache.layers[0].get_mask_sizes(1)
    return found


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("length", [1, 3, WINDOW - 1, WINDOW, 9])
def test_taken_rows_are_those_of_a_cache_that_only_had_them(kind: str, length: int) -> None:
    tokens, states = numbers(4, length), numbers(4)
    cache = cache_of(kind, tokens, states)
    rows.take(cache, [3, 1])
    assert facts(cache) == facts(cache_of(kind, tokens[[3, 1]], states[[3, 1]]))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("lengths", SHORTER_OR_LONGER)
def test_joined_caches_are_one_that_was_padded_left_from_the_start(kind: str, lengths: tuple[int, int]) -> None:
    parts = [(numbers(2, length, seed=length), numbers(2, seed=length + 50)) for length in lengths]
    cache, other = (cache_of(kind, *part) for part in parts)
    rows.join(cache, other)
    tokens = torch.cat([left_padded(part[0], max(lengths)) for part in parts])
    assert facts(cache) == facts(cache_of(kind, tokens, torch.cat([part[1] for part in parts])))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("columns", [1, 2, 6, 8])
def test_trimmed_cache_is_one_that_never_had_the_columns(kind: str, columns: int) -> None:
    tokens, states = numbers(2, 9), numbers(2)
    tokens[:, :columns] = 0
    cache = cache_of(kind, tokens, states)
    rows.trim(cache, columns)
    assert facts(cache) == facts(cache_of(kind, tokens[:, columns:], states))


@pytest.mark.parametrize("kind", LAYERS)
def test_split_gives_each_part_its_own_rows_and_memory(kind: str) -> None:
    """A part that shared memory with the other would change when the other steps."""
    tokens, states = numbers(3, 7), numbers(3)
    cache = cache_of(kind, tokens, states)
    other = rows.split(cache, [2, 0], [1])
    before = copy.deepcopy(facts(other))
    feed(cache.layers[0], numbers(1, 1, seed=9), numbers(1, seed=9))
    assert facts(other) == before == facts(cache_of(kind, tokens[[2, 0]], states[[2, 0]]))


@pytest.mark.parametrize("kind", ["dynamic", "growing", "sliding", "indexed"])
def test_take_agrees_with_batch_select_indices(kind: str) -> None:
    mine, library = (cache_of(kind, numbers(4, 9), numbers(4)) for _ in range(2))
    rows.take(mine, [2, 0, 3])
    layer = library.layers[0]
    assert isinstance(layer, DynamicLayer)
    layer.batch_select_indices(torch.tensor([2, 0, 3]))
    assert facts(mine) == facts(library)


@pytest.mark.parametrize("kind", LAYERS)
def test_take_agrees_with_reorder_cache(kind: str) -> None:
    """The library moves linear states only here, and only in whole batches."""
    mine, library = (cache_of(kind, numbers(3, 9), numbers(3)) for _ in range(2))
    rows.take(mine, [2, 0, 1])
    library.layers[0].reorder_cache(torch.LongTensor([2, 0, 1]))
    assert facts(mine) == facts(library)


class OwnLayer(DynamicLayer):
    """A model's own layer: a subclass may keep more than its base, so only exact classes are known."""


@pytest.mark.parametrize("operation", [lambda cache: rows.take(cache, [0]), lambda cache: rows.trim(cache, 1)])
def test_unknown_class_is_refused_before_anything_moves(operation: Callable[[Cache], None]) -> None:
    known, unknown = DynamicLayer(), OwnLayer()
    for layer in (known, unknown):
        feed(layer, numbers(2, 4), numbers(2))
    cache = Cache(layers=[known, unknown])
    before = facts(cache)
    with pytest.raises(rows.UnknownCacheLayer, match="OwnLayer"):
        operation(cache)
    assert facts(cache) == before


def test_unknown_state_of_a_known_class_is_refused() -> None:
    """A later transformers may add a tensor for each row; left where it was, rows would get each other's."""
    cache = cache_of("dynamic", numbers(2, 4), numbers(2))
    cache.layers[0].extra = {"states": [numbers(2)]}  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(rows.UnknownCacheLayer, match="extra"):
        rows.take(cache, [1])


def test_recorded_past_is_refused() -> None:
    cache = cache_of("sliding", numbers(2, 4), numbers(2))
    cache.activate_past_recording()
    with pytest.raises(rows.UnknownCacheLayer, match="records its past"):
        rows.take(cache, [1])


@pytest.mark.parametrize("other", ["sliding", "linear"])
def test_caches_of_different_kinds_do_not_join(other: str) -> None:
    cache = cache_of("dynamic", numbers(2, 4), numbers(2))
    with pytest.raises(rows.UnknownCacheLayer):
        rows.join(cache, cache_of(other, numbers(2, 4), numbers(2)))


def test_linear_state_that_has_not_started_does_not_join_one_that_has() -> None:
    """Its row would silently get no state at all."""
    cache = cache_of("linear", numbers(2, 4), numbers(2))
    with pytest.raises(rows.UnknownCacheLayer):
        rows.join(cache, Cache(layers=[LAYERS["linear"](), DummyLayer()]))


def test_compact_frees_the_prompt_behind_a_window_and_keeps_the_window() -> None:
    cache = cache_of("sliding", numbers(2, 40), numbers(2), steps=0)
    before, held = facts(cache), rows.cache_bytes(cache)
    rows.compact(cache)
    assert facts(cache) == before
    assert rows.cache_bytes(cache) == held * (WINDOW - 1) // 40


def test_cache_bytes_counts_states_of_linear_attention() -> None:
    cache = cache_of("hybrid", numbers(2, 6), numbers(2))
    attention, linear = 2 * HEADS * 6 * (WIDTH + 1), 2 * (WIDTH * 4 + HEADS * WIDTH)
    assert rows.cache_bytes(cache) == 4 * (attention + linear)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(LAYERS)))
def test_any_history_leaves_every_row_its_own_newest_positions(data: st.DataObject, kind: str) -> None:
    """Random joins, leaves, trims and steps; the model is one plain list of numbers a row."""
    counter = iter(range(1, 10_000))
    cache, texts = _started(kind, counter, data.draw(st.integers(1, 8)))
    for _ in range(data.draw(st.integers(1, 6))):
        match data.draw(st.sampled_from(["join", "take", "step"])):
            case "join":
                other, more = _started(kind, counter, data.draw(st.integers(1, 8)))
                rows.join(cache, other)
                texts += more
            case "take":
                kept = data.draw(st.permutations(range(len(texts))))[: data.draw(st.integers(1, len(texts)))]
                longest = max(map(len, texts))
                texts = [texts[row] for row in kept]
                rows.take(cache, kept)
                rows.trim(cache, longest - max(map(len, texts)))
            case _:
                for text in texts:
                    text.append(next(counter))
                newest = torch.tensor([text[-1] for text in texts]).float()
                feed(cache.layers[0], newest[:, None], newest)
        _check(cache.layers[0], texts)


def _started(kind: str, counter: Any, length: int) -> tuple[Cache, list[list[int]]]:
    texts = [[next(counter) for _ in range(length)] for _ in range(2)]
    tokens = torch.tensor(texts).float()
    return cache_of(kind, tokens, tokens[:, -1], steps=0), texts


def _check(layer: Any, texts: list[list[int]]) -> None:
    if isinstance(layer, DynamicLayer):
        assert layer.get_seq_length() == max(map(len, texts))
        assert layer.keys is not None
        columns = layer.keys.shape[2]
        assert layer.get_mask_sizes(1)[0] == columns + 1
        for row, text in enumerate(texts):
            own = text[-columns:]
            assert layer.keys[row, 0, columns - len(own) :, 0].tolist() == own
    if isinstance(layer, DynamicIndexedLayer):
        assert layer.indexer_keys is not None
        assert layer.indexer_keys[:, -1, 0].tolist() == [3 * text[-1] for text in texts]
    if isinstance(layer, LinearAttentionLayer):
        assert layer.recurrent_states[0] is not None
        assert layer.recurrent_states[0][:, 0, 0].tolist() == [2 * text[-1] for text in texts]
