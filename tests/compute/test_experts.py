"""The experts of a layer give what the library's own module gives; order of arrival and padding change no bit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from expertflow.errors import EngineError
from expertflow.tests.loader.arenas import fill, make_arena
from expertflow.tests.models.families import FAMILIES
from expertflow.tests.models.library_experts import library_experts
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.experts.expert_rows import rows_by_expert
from expertflow.workers.compute.experts.layer import is_plain, run_expert
from expertflow.workers.compute.experts.residency import FeedCounts
from expertflow.workers.compute.experts.routing import RoutingCollector
from expertflow.workers.compute.experts.slots import ExpertWeights, SlotViews
from expertflow.workers.compute.skeleton import load_model
from expertflow.workers.kernels.products import padded_rows
from expertflow.workers.model.architecture import experts_modules
from expertflow.workers.model.step_input import StepTokens
from expertflow.workers.surveyor.surveyor import survey_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

DTYPES = ("float32", "bfloat16", "float16")
TOKENS = 23


class SlotFeed:
    """Every expert in a slot of its own, streamed in the order that a test asks for."""

    def __init__(self, survey: Survey) -> None:
        keys = [(layer, expert) for layer in range(survey.layers) for expert in range(survey.experts)]
        memory = make_arena(len(keys) * survey.stride_bytes)
        fill(survey, dict(enumerate(keys)), memory)
        self._views, self._experts = SlotViews(memory, survey), survey.experts
        self.shuffle: np.random.Generator | None = None
        self.instead: dict[int, int] = {}
        """A mutant: another expert's weights for one."""
        self.stacked, self.stacks = False, 0
        """Whether all experts of a layer are given at once, and how often that was of use."""
        self.lost: set[int] = set()
        """A mutant: experts that never come."""

    def weights(self, layer: int, expert: int) -> ExpertWeights:
        return self._views.weights(layer * self._experts + expert, layer, expert)

    def begin(self, layer: int, experts: list[int]) -> None:
        self._begun = (layer, experts)

    def stack(self) -> ExpertWeights | None:
        return self._views.stack(self._begun[0]) if self.stacked else None

    def finish(self) -> None:
        self.stacks += 1

    def stream(self, together: Collection[int] = ()) -> Iterable[list[tuple[int, ExpertWeights]]]:
        layer, experts = self._begun
        order = experts if self.shuffle is None else self.shuffle.permutation(experts).tolist()
        for expert in order:
            if expert not in self.lost:
                yield [(expert, self.weights(layer, self.instead.get(expert, expert)))]


class Bench(NamedTuple):
    """One family in one dtype: our experts modules and the library's."""

    survey: Survey
    feed: SlotFeed
    routing: RoutingCollector
    ours: list[Any]
    theirs: list[Any]


class Batch(NamedTuple):
    """What a router hands to the experts."""

    hidden: torch.Tensor
    routes: torch.Tensor
    weights: torch.Tensor


@cache
def bench(folders: Path, family: str, dtype: str = "float32") -> Bench:
    survey = survey_checkpoint(str(folders / family), dtype=dtype)
    feed, routing = SlotFeed(survey), RoutingCollector()
    ours = load_model(survey, feed, routing)
    theirs = AutoModelForCausalLM.from_pretrained(
        folders / family, dtype=getattr(torch, dtype), experts_implementation="eager"
    )
    modules = [module for _, module in experts_modules(ours)]
    return Bench(survey, feed, routing, modules, library_experts(theirs))


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def tokens_of(real: Sequence[bool]) -> StepTokens:
    count = sum(real)
    flags = None if all(real) else torch.tensor(real)
    return StepTokens(flags, list(range(count)), [0] * count, list(range(count)))


def draw_batch(survey: Survey, tokens: int = TOKENS, seed: int = 0) -> Batch:
    """Random tokens whose routes take every expert but the last of the model."""
    generator = torch.Generator().manual_seed(seed)
    dtype: torch.dtype = getattr(torch, survey.dtype)
    width = 48
    scores = torch.randn(tokens, survey.experts - 1, generator=generator)
    weights, index = scores.softmax(dim=-1).topk(survey.top_k)
    return Batch(torch.randn(tokens, width, generator=generator).to(dtype), index, weights.to(dtype))


def run_ours(at: Bench, batch: Batch, layer: int = 0, real: Sequence[bool] = ()) -> torch.Tensor:
    at.routing.begin(tokens_of(real or [True] * len(batch.hidden)))
    module = at.ours[layer]
    return getattr(module, "run_routed", module)(*batch)


def error_of(output: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float((output.float() - exact).abs().max() / exact.abs().max())


# Against the library


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_equals_the_librarys(folders: Path, family: str):
    at = bench(folders, family)
    assert len(at.ours) == len(at.theirs) == at.survey.layers
    for layer, module in enumerate(at.theirs):
        batch = draw_batch(at.survey, seed=layer)
        assert error_of(run_ours(at, batch, layer), module(*batch)) < 1e-6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_half_precision_a_layer_is_as_good_as_the_librarys(folders: Path, family: str, dtype: str):
    """Both against the same weights and inputs in float32 (I1c); over many tokens, as both are noise."""
    at, exact = bench(folders, family, dtype), bench(folders, family, "float32")
    batch = draw_batch(at.survey, tokens=200)
    whole = exact_layer(at, exact, batch)
    assert run_ours(at, batch).dtype == batch.hidden.dtype
    ours, theirs = ((out.float() - whole).pow(2).mean().sqrt() for out in (run_ours(at, batch), at.theirs[0](*batch)))
    assert ours <= 1.1 * theirs


def exact_layer(at: Bench, exact: Bench, batch: Batch) -> torch.Tensor:
    """The library's layer in float32 with weights rounded to the dtype of `at`."""
    module = exact.theirs[0]
    kept = {name: tensor.clone() for name, tensor in module.named_parameters()}
    for name, tensor in module.named_parameters():
        tensor.copy_(dict(at.theirs[0].named_parameters())[name])
    try:
        return module(batch.hidden.float(), batch.routes, batch.weights.float())
    finally:
        for name, tensor in module.named_parameters():
            tensor.copy_(kept[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_expert_equals_the_librarys(folders: Path, family: str, dtype: str):
    """All tokens to one expert with weight one: the library's layer is that expert. In float32 bit for bit, but for
    gpt-oss, where the library adds the bias in a second step, and Llama 4, where it multiplies all experts at once."""
    at = bench(folders, family, dtype)
    rows = draw_batch(at.survey).hidden
    index, weights = torch.full((TOKENS, 1), 5), torch.ones(TOKENS, 1, dtype=rows.dtype)
    ours, theirs = run_expert(at.ours[0], at.feed.weights(0, 5), rows), at.theirs[0](rows, index, weights)
    if dtype != "float32" or family in ("gpt_oss", "llama4_text"):
        assert error_of(ours, theirs.float()) < {"float32": 1e-6, "bfloat16": 2e-2, "float16": 2e-3}[dtype]
    else:
        assert torch.equal(ours, theirs)


# Bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_arrival_changes_no_bit(folders: Path, family: str, dtype: str):
    """I1a: experts come when the disk has them."""
    at = bench(folders, family, dtype)
    batch = draw_batch(at.survey)
    expected = run_ours(at, batch)
    for seed in range(4):
        at.feed.shuffle = np.random.default_rng(seed)
        try:
            assert torch.equal(run_ours(at, batch), expected)
        finally:
            at.feed.shuffle = None


@pytest.mark.parametrize("tokens", [1, TOKENS, 700])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_experts_in_one_call_change_no_bit(folders: Path, family: str, dtype: str, tokens: int):
    """I1a: with everything resident a layer is one product, else one an expert."""
    at = bench(folders, family, dtype)
    batch = draw_batch(at.survey, tokens)
    expected = run_ours(at, batch)
    at.feed.stacked, at.feed.stacks = True, 0
    try:
        assert torch.equal(run_ours(at, batch), expected)
    finally:
        at.feed.stacked = False
    few = tokens * at.survey.top_k / at.survey.experts < 2 * TOKENS
    assert at.feed.stacks == (few and dtype == "bfloat16" and is_plain(at.ours[0]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_pads_give_zeros_and_change_no_bit_of_the_others(folders: Path, family: str, dtype: str):
    """Whatever a pad holds, NaN included, and wherever it would go."""
    at = bench(folders, family, dtype)
    batch = draw_batch(at.survey)
    real = [number % 3 != 0 for number in range(TOKENS)]
    rows = torch.tensor(real)
    hidden, index = batch.hidden.clone(), batch.routes.clone()
    hidden[~rows], index[~rows] = float("nan"), at.survey.experts - 1
    padded = run_ours(at, Batch(hidden, index, batch.weights), real=real)
    assert torch.equal(padded[rows], run_ours(at, Batch(*(part[rows] for part in batch))))
    assert (padded[~rows] == 0).all()


def test_pads_are_in_no_statistics_and_ask_for_no_expert(folders: Path):
    """A need for an expert that only pads chose would load it for nothing."""
    at = bench(folders, "olmoe")
    batch = draw_batch(at.survey, tokens=3)
    index = torch.tensor([[15, 14, 13, 12], [1, 2, 3, 4], [15, 3, 2, 1]])
    at.feed.lost = {12, 13, 14}
    try:
        run_ours(at, Batch(batch.hidden, index, batch.weights), real=[False, True, True])
    finally:
        at.feed.lost = set()
    used = at.routing.step_routing(7, FeedCounts(1, 2, 3))
    assert (used.step, used.top_k, used.hits, used.misses, used.stall_ns) == (7, 4, 1, 2, 3)
    assert np.frombuffer(used.experts, "<u2").tolist() == [1, 2, 3, 4, 15, 3, 2, 1]
    assert used.token_ids == [0, 1]


def test_nothing_but_pads_is_no_error(folders: Path):
    at = bench(folders, "olmoe")
    assert (run_ours(at, draw_batch(at.survey, tokens=2), real=[False, False]) == 0).all()


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_batch_of_few_tokens_gives_what_the_library_gives(folders: Path, tokens: int):
    """Decoding one sequence: as many experts as choices."""
    at = bench(folders, "qwen3_moe")
    batch = draw_batch(at.survey, tokens)
    assert error_of(run_ours(at, batch), at.theirs[0](*batch)) < 1e-6


# Mutants


def hit(batch: Batch) -> list[int]:
    return torch.unique(batch.routes).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_two_experts_exchanged_are_seen(folders: Path, family: str):
    at = bench(folders, family)
    batch = draw_batch(at.survey)
    first, second = hit(batch)[:2]
    assert mutant_error(at, batch, {first: second, second: first}) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stale_slot_is_seen(folders: Path, family: str):
    """One expert computed with what its slot held before, if only one token takes it."""
    at = bench(folders, family)
    batch = draw_batch(at.survey, tokens=1)
    assert mutant_error(at, batch, {hit(batch)[0]: at.survey.experts - 1}) > 1e-2


def mutant_error(at: Bench, batch: Batch, instead: dict[int, int]) -> float:
    at.feed.instead = instead
    try:
        return error_of(run_ours(at, batch), at.theirs[0](*batch))
    finally:
        at.feed.instead = {}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lost_wave_is_an_error(folders: Path, family: str):
    """Not a value: the rows of an expert that never came hold what the memory held before, often the right products."""
    at = bench(folders, family)
    batch = draw_batch(at.survey)
    at.feed.lost = {hit(batch)[1]}
    try:
        with pytest.raises(EngineError, match=rf"experts \[{hit(batch)[1]}\] never arrived") as caught:
            run_ours(at, batch, layer=1)
    finally:
        at.feed.lost = set()
    assert caught.value.where == "MoE layer 1"


# Grouping


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=60))
def test_pairs_are_grouped_by_expert_in_the_order_of_tokens(routes: list[list[int]]):
    """Stable: the same tokens make the same rows of an expert's matrix, whatever else is in the batch."""
    rows = rows_by_expert(np.array(routes, dtype=np.int64))
    flat = np.array(routes).reshape(-1)
    assert rows.experts == sorted(set(flat.tolist()))
    assert flat[rows.pair_of_row[rows.row_of_pair]].tolist() == flat.tolist()
    assert rows.pair_of_row[rows.row_of_pair].tolist() == list(range(flat.size))
    for expert, low, high in zip(rows.experts, rows.bounds, rows.bounds[1:], strict=False):
        own = rows.row_of_pair[flat == expert]
        assert own.tolist() == list(range(low, low + len(own)))
        assert high - low == padded_rows(len(own))
    counts = np.diff(rows.ends(12), prepend=0)
    assert counts[rows.experts].tolist() == np.diff(rows.bounds).tolist()
    assert counts.sum() == rows.bounds[-1] <= len(rows.pair_of_row)
