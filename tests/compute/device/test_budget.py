"""A device's memory: what does not fit is refused with the numbers, and a step that runs out of it goes on in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow import Config
from expertflow.errors import BudgetError, EngineError
from expertflow.ipc.messages import StepSize
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.system.references import Reference, random_prompts
from expertflow.tests.system.schedules import Driver
from expertflow.workers.compute.device.fake import MEMORY_BYTES, FakeDevice
from expertflow.workers.compute.device.memory import claim_memory, working_bytes
from expertflow.workers.model import cache_rows as cache_rows
from expertflow.workers.model.unit import RowAbilities
from expertflow.workers.surveyor.surveyor import survey_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
MAX_TOKENS = 40


class SmallDevice(FakeDevice):
    """Remembers its limit."""

    def __init__(self, free_bytes: int) -> None:
        super().__init__()
        self._free_bytes, self.limit_bytes = free_bytes, 0

    def free_bytes(self) -> int:
        return self._free_bytes

    def limit_memory(self, count_bytes: int) -> None:
        self.limit_bytes = count_bytes


def test_a_budget_that_just_fits_is_claimed_and_one_byte_less_is_refused(folders: Path) -> None:
    """I5: slots, caches, skeleton and working memory, with the numbers in the error."""
    survey = survey_checkpoint(str(folders / "olmoe"))
    config = Config(kv_memory="64MiB", device="cuda")
    working = working_bytes(survey, config)
    needed = 10 * survey.stride_bytes + 64 * 2**20 + survey.skeleton_bytes + working
    device = SmallDevice(needed)
    claim_memory(device, config, survey, 10)
    assert device.limit_bytes == needed
    with pytest.raises(
        BudgetError, match=r"needs \d.*\(expert slots .* KV caches 67\.1 MB, .*\), but only \d.* is free"
    ):
        claim_memory(SmallDevice(needed - 1), config, survey, 10)


def test_a_longer_prefill_needs_more_working_memory(folders: Path) -> None:
    survey = survey_checkpoint(str(folders / "olmoe"))
    less, more = (working_bytes(survey, Config(prefill_tokens=tokens)) for tokens in (64, 6400))
    assert less < more < MEMORY_BYTES


class FullMemory:
    """A model that has memory for so many positions in a step."""

    def __init__(self, model: Any, most_tokens: int) -> None:
        self._model, self._most_tokens = model, most_tokens
        self.config = model.config
        self.sizes: list[int] = []
        self.forward = model.forward

    def __call__(self, input_ids: torch.Tensor, **options: Any) -> Any:
        self.sizes.append(input_ids.numel())
        if input_ids.numel() > self._most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._model(input_ids=input_ids, **options)


def test_out_of_memory_makes_the_step_smaller_and_nothing_else(folders: Path) -> None:
    """Rows are run in halves until they fit, then go on together; tokens are those of each alone."""
    survey = survey_checkpoint(str(folders / "olmoe"))
    prompts = random_prompts(8, survey.vocabulary, seed=3, longest=12)
    with LocalRuntime(survey, 8, RowAbilities.of(survey.rows), tier="host", device=FakeDevice(1)) as runtime:
        small = runtime._executor._model = FullMemory(runtime.model, MAX_TOKENS)
        driver = Failures(runtime, survey.vocabulary)
        driver.prefill(1, prompts)
        driver.decode(1)
        driver.decode(1)
    at_most = driver.told[0]
    assert at_most is not None and whole_positions(prompts) // 4 <= at_most.positions <= MAX_TOKENS
    assert driver.told[1:] == [None, None]
    whole, first_half = small.sizes[:2]
    assert whole > MAX_TOKENS and first_half <= whole // 2 and small.sizes[-2:] == [8, 8]
    reference = Reference(folders / "olmoe")
    assert [each.token_ids for each in driver.sequences.values()] == [reference.greedy(each, 3) for each in prompts]


def test_a_row_that_does_not_fit_alone_fails_alone(folders: Path) -> None:
    survey = survey_checkpoint(str(folders / "olmoe"))
    with LocalRuntime(survey, 8, RowAbilities.of(survey.rows), tier="host", device=FakeDevice(1)) as runtime:
        runtime._executor._model = FullMemory(runtime.model, 10)
        driver = Failures(runtime, survey.vocabulary)
        driver.prefill(1, [[5] * 4, [6] * 11, [7] * 3])
    assert driver.told == [StepSize(rows=1, positions=5)], "half of the smallest that failed: eleven positions"
    assert list(driver.failed) == [1] and "does not fit" in driver.failed[1].what
    assert [len(each.token_ids) for each in driver.sequences.values()] == [1, 0, 1]


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_rows_that_have_no_room_to_move_are_computed_again(
    folders: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """A join holds a layer twice; it may end half-way."""
    survey = survey_checkpoint(str(folders / family))
    prompts = random_prompts(5, survey.vocabulary, seed=4, longest=12)
    with LocalRuntime(survey, 8, RowAbilities.of(survey.rows), tier="host", device=FakeDevice(1)) as runtime:
        driver = Driver(runtime, survey.vocabulary)
        driver.prefill(1, prompts[:3])
        driver.prefill(2, prompts[3:])
        driver.decode(1)
        monkeypatch.setattr(cache_rows, "join", HalfJoin())
        driver.decode(1, drop=[1], join=[2])
        driver.decode(1)
        assert runtime._executor.kv_bytes == runtime._executor._units[1].kv_bytes
    reference = Reference(folders / family)
    for prompt, sequence, count in zip(prompts, driver.sequences.values(), (4, 2, 4, 3, 3), strict=True):
        assert sequence.token_ids == reference.greedy(prompt, count)


class HalfJoin:
    """The first time there is room for one layer."""

    def __init__(self) -> None:
        self._join, self._has_room = cache_rows.join, False

    def __call__(self, cache: Any, other: Any) -> None:
        if self._has_room:
            return self._join(cache, other)
        self._has_room = True
        cache.layers[0], other.layers[0] = cache_rows._join_layers(cache.layers[0], other.layers[0]), None
        raise torch.OutOfMemoryError("CUDA out of memory")


class LostDevice(FakeDevice):
    """After a kernel that failed, everything fails."""

    is_lost = False

    def require_usable(self) -> None:
        if self.is_lost:
            raise EngineError("is lost to this process", self.name, "")


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_lost_device_ends_the_process_and_not_its_rows(folders: Path, is_lost: bool) -> None:
    """I4: a new process can run them; here every row, and every later one, would be told that it failed."""
    survey, device = survey_checkpoint(str(folders / "olmoe")), LostDevice()
    with LocalRuntime(survey, 8, RowAbilities.of(survey.rows), tier="host", device=device) as runtime:
        driver = Failures(runtime, survey.vocabulary)
        driver.prefill(1, [[5] * 4, [6] * 11])
        device.is_lost, runtime._executor._choose = is_lost, fail
        if is_lost:
            with pytest.raises(EngineError, match="is lost"):
                driver.decode(1)
        else:
            driver.decode(1)
            assert list(driver.failed) == [0, 1]


def fail(*anything: object) -> Any:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def whole_positions(prompts: list[list[int]]) -> int:
    return len(prompts) * max(map(len, prompts))


class Failures(Driver):
    """Keeps what rows failed with, and what the scheduler was told of the room there is."""

    failed: dict[int, Any]
    told: list[StepSize | None]

    def _run(self, step: Any) -> None:
        stepped, _ = self.runtime.run(step)
        self.failed = stepped.failed
        self.told = [*getattr(self, "told", []), stepped.at_most]
        for row, token in zip(stepped.rows, stepped.tokens, strict=True):
            self.sequences[row].token_ids.append(token)
