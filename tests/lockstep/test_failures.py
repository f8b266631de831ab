"""Rows that fail in mid-flight: others keep their bits, and a row that is computed again has its bits again (I1d)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from expertflow.ipc.messages import RequestRow, RunStep, Sampling, Stepped, StepRouting
from expertflow.runtime.verify.local_runtime import LocalRuntime
from expertflow.tests.lockstep.lives import RowDigests, surveyed
from expertflow.tests.lockstep.test_lockstep import suspended
from expertflow.tests.models.families import save_tiny
from expertflow.workers.checkpoint.survey import Survey
from expertflow.workers.compute.experts.residency import ComputeStopped
from expertflow.workers.compute.lockstep.unit import LockstepRow
from expertflow.workers.model.step_input import StepTokens
from torch import nn

PROMPTS = [[5, 9, 11, 4], [7] * 9, [3, 4], [8, 20, 33, 47, 51, 60]]
STEPS = 6


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    folder = tmp_path_factory.mktemp("olmoe")
    save_tiny("olmoe", folder, seed=2)
    return surveyed(folder, "float32")


@pytest.fixture
def digests() -> RowDigests:
    return RowDigests()


@pytest.fixture
def runtime(survey: Survey, digests: RowDigests) -> Iterator[LocalRuntime]:
    with LocalRuntime(survey, survey.expert_count // 4, choose=digests.choose) as runtime:
        yield runtime


def prefill(runtime: LocalRuntime, numbers: list[int]) -> tuple[Stepped, StepRouting | None]:
    rows = [RequestRow(number, PROMPTS[number], 0, Sampling(0.9, seed=number)) for number in numbers]
    return runtime.run(RunStep(number=0, unit=1, admit=rows, batch_invariant=True))


def decode(runtime: LocalRuntime, count: int, number: int = 1) -> list[Stepped]:
    return [runtime.run(RunStep(number=number + i, unit=1, batch_invariant=True))[0] for i in range(count)]


@pytest.fixture(scope="module")
def alone(survey: Survey) -> dict[int, list[bytes]]:
    bits: dict[int, list[bytes]] = {}
    for number in range(len(PROMPTS)):
        digests = RowDigests()
        with LocalRuntime(survey, survey.expert_count, choose=digests.choose) as runtime:
            prefill(runtime, [number])
            decode(runtime, STEPS)
        bits |= digests.seen
    return bits


class Breaker:
    """Breaks forwards of the second layer: `at` is the call that fails first, counted from now; `times` in a row."""

    def __init__(self, runtime: LocalRuntime) -> None:
        self.calls, self._failing = 0, range(0)
        runtime.model.model.layers[1].register_forward_pre_hook(self._on_call)

    def arm(self, at: int, times: int = 1) -> None:
        self.calls, self._failing = 0, range(at, at + times)

    def _on_call(self, layer: nn.Module, inputs: Any) -> None:
        self.calls += 1
        if self.calls - 1 in self._failing:
            raise ValueError("a row broke")


def test_a_row_that_broke_once_goes_on_with_its_own_bits(
    runtime: LocalRuntime, digests: RowDigests, alone: dict[int, list[bytes]]
) -> None:
    """It is computed again alone: its prompt in one prefill, then token by token as before (mutant: in one prefill)."""
    breaker = Breaker(runtime)
    prefill(runtime, [0, 1, 2, 3])
    decode(runtime, 3)
    breaker.arm(at=2)
    stepped, routing = runtime.run(RunStep(number=4, unit=1, batch_invariant=True))
    assert not stepped.failed and sorted(stepped.rows) == [0, 1, 2, 3] and routing is None
    assert breaker.calls == 4 + 1 + 4, "four rows, then a prompt and four tokens of one of them"
    decode(runtime, 2, number=5)
    assert digests.seen == alone and suspended() == []


def test_a_row_that_is_computed_again_in_one_prefill_has_other_bits(
    runtime: LocalRuntime, digests: RowDigests, alone: dict[int, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant of the test above."""
    monkeypatch.setattr(LockstepRow, "prepare_prefill", lambda self, row, *_: self.unit.prepare_prefill([row]))
    breaker = Breaker(runtime)
    prefill(runtime, [0, 1, 2, 3])
    decode(runtime, 3)
    breaker.arm(at=1)
    decode(runtime, 3, number=4)
    assert digests.seen[1] != alone[1] and digests.seen[0] == alone[0]


def test_only_a_row_that_breaks_again_fails(
    runtime: LocalRuntime, digests: RowDigests, alone: dict[int, list[bytes]]
) -> None:
    breaker = Breaker(runtime)
    prefill(runtime, [0, 1, 2, 3])
    decode(runtime, 1)
    breaker.arm(at=1)
    runtime.model.model.layers[0].register_forward_pre_hook(lambda layer, inputs: _break_prefills(inputs))
    (stepped,) = decode(runtime, 1, number=2)
    assert list(stepped.failed) == [1] and "a prefill broke" in stepped.failed[1].what
    decode(runtime, STEPS - 2, number=3)
    assert {number: digests.seen[number] for number in (0, 2, 3)} == {n: alone[n] for n in (0, 2, 3)}
    assert suspended() == []


def _break_prefills(inputs: Any) -> None:
    if inputs[0].shape[1] > 1:
        raise ValueError("a prefill broke")


def test_a_trace_of_hidden_states_takes_rows_that_are_run_again(runtime: LocalRuntime, digests: RowDigests) -> None:
    """It chose tokens of the prompt; the forwards after it have fewer tokens, and are not traced."""
    digests.seen = {number: [b""] * 3 for number in range(4)}
    runtime._executor._routing._trace = _AllHidden()  # pyright: ignore[reportAttributeAccessIssue]
    rows = [RequestRow(n, [*PROMPTS[n], 9, 8, 7], 3, Sampling(0.9, seed=n)) for n in range(4)]
    stepped, routing = runtime.run(RunStep(number=0, unit=1, admit=rows, batch_invariant=True))
    assert not stepped.failed and routing is None
    assert digests.most == 4, "the rows ran together, none by itself"


class _AllHidden:
    """The part of a `StepTrace` with hidden states that could fail: it looks up every token of the forward."""

    def begin(self, tokens: StepTokens) -> None:
        self._sampled = torch.arange(len(tokens.token_ids))

    def layer(self, layer: int, hidden: torch.Tensor, weights: torch.Tensor) -> None:
        assert len(hidden[self._sampled]) == len(self._sampled)


def test_where_all_rows_break_each_is_tried_alone(
    runtime: LocalRuntime, digests: RowDigests, alone: dict[int, list[bytes]]
) -> None:
    breaker = Breaker(runtime)
    breaker.arm(at=0, times=4)
    stepped, _ = prefill(runtime, [0, 1, 2, 3])
    assert not stepped.failed
    decode(runtime, STEPS)
    assert digests.seen == alone


def test_a_lone_row_that_breaks_fails_at_once(runtime: LocalRuntime) -> None:
    Breaker(runtime).arm(at=0)
    stepped, _ = prefill(runtime, [0])
    assert list(stepped.failed) == [0] and "a row broke" in stepped.failed[0].what


def test_a_stop_ends_every_forward(runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is asked to end while a layer waits: no row is left suspended."""

    def stop() -> list[Any]:
        raise ComputeStopped

    monkeypatch.setattr(runtime._residency, "_wait", stop)
    with pytest.raises(ComputeStopped):
        prefill(runtime, [0, 1, 2, 3])
    assert suspended() == []


def test_rows_that_come_with_output_have_the_bits_of_an_undisturbed_run(
    runtime: LocalRuntime, digests: RowDigests, alone: dict[int, list[bytes]]
) -> None:
    """As after a death of compute: rows of several lengths of output are admitted together."""
    prefill(runtime, [0, 1, 2, 3])
    steps = decode(runtime, 2)
    outputs = {row: [step.tokens[step.rows.index(row)] for step in steps] for row in range(4)}
    first = {number: digests.seen[number][:] for number in range(4)}
    rows = [
        RequestRow(n, PROMPTS[n] + tokens, len(tokens), Sampling(0.9, seed=n))
        for n, tokens in ((n, _tokens(runtime, n, outputs[n])) for n in range(4))
    ]
    runtime.run(RunStep(number=3, unit=2, admit=rows, batch_invariant=True))
    for i in range(STEPS - 3):
        runtime.run(RunStep(number=4 + i, unit=2, batch_invariant=True))
    assert digests.seen == alone and all(digests.seen[n][:3] == first[n] for n in range(4))


def _tokens(runtime: LocalRuntime, number: int, decoded: list[int]) -> list[int]:
    unit = runtime._executor._units[1]
    (row,) = [row for row in unit.whole_rows() if row.number == number]
    assert row.token_ids[-len(decoded) :] == decoded
    return row.token_ids[len(PROMPTS[number]) :]
