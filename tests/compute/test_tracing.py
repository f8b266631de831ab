"""What compute writes into a trace: times without stalls, hints by layer, states of sampled tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from expertflow.ipc.messages import Hint, RequestRow, RunStep, Sampling, Stepped, StepRouting
from expertflow.tests.traces.streams import EXPERTS, LAYERS, TOP_K, WIDTH, header
from expertflow.workers.compute.experts.residency import FeedCounts
from expertflow.workers.compute.experts.routing import RoutingCollector
from expertflow.workers.compute.experts.tracing import StepTrace
from expertflow.workers.model.step_input import StepTokens
from expertflow.workers.traces.folder import read_steps
from expertflow.workers.traces.records import TracedStep
from expertflow.workers.traces.stream import TraceFile

TOKENS = StepTokens(None, [7, 8, 9], [0, 0, 4], [0, 1, 5])


class Clocks:
    """Time that a test moves, and how much of it was waiting."""

    now_ns = 100
    stall_ns = 0

    def work(self, duration_ns: int) -> None:
        self.now_ns += duration_ns

    def wait(self, duration_ns: int) -> None:
        self.now_ns += duration_ns
        self.stall_ns += duration_ns


class Traced:
    """A trace in a folder, and forwards through a StepRouting with it."""

    def __init__(self, folder: Path, share: float) -> None:
        self.clocks, self.folder = Clocks(), folder
        file = TraceFile(str(folder), header())
        self.trace = StepTrace(file, header(), share, lambda: self.clocks.now_ns, lambda: self.clocks.stall_ns)
        self.routing = RoutingCollector(self.trace)

    def forward(self, tokens: StepTokens = TOKENS, hints: dict[int, bytes] | None = None) -> StepRouting:
        """Each layer works 10 × (layer + 1) and then waits; its hidden states are its number everywhere."""
        self.routing.begin(tokens)
        self.clocks.work(5)
        count = len(tokens.token_ids)
        for layer in range(LAYERS):
            routes = np.full((count, TOP_K), layer)
            states = torch.arange(count)[:, None].expand(count, WIDTH) + 10.0 * layer
            self.routing.add(layer, routes, states.bfloat16(), torch.full((count, TOP_K), 0.25))
            if hints and layer in hints:
                self.trace.hint(Hint(0, layer, hints[layer]))
            self.clocks.work(10 * (layer + 1))
            self.clocks.wait(1000)
        return self.routing.step_routing(0, FeedCounts(2, 1, 3000))

    def record(self, used: StepRouting | None, order: RunStep | None = None) -> list[TracedStep]:
        stepped = Stepped(number=0, unit=2, rows=[], tokens=[], busy_ns=3065, stall_ns=3000, kv_bytes=0)
        self.trace.write(order or RunStep(number=0, unit=2), stepped, used)
        self.trace.close()
        return list(read_steps(self.folder))


@pytest.fixture
def traced(tmp_path: Path) -> Traced:
    return Traced(tmp_path, share=1.0)


def test_a_record_tells_the_step_as_it_was(traced: Traced) -> None:
    (record,) = traced.record(traced.forward())
    assert (record.step, record.unit, record.phase) == (0, 2, "decode")
    assert (record.token_ids, record.rows, record.positions) == ([7, 8, 9], [0, 0, 4], [0, 1, 5])
    routes = np.frombuffer(record.experts, "<u2").reshape(3, LAYERS, TOP_K)
    assert (routes == np.arange(LAYERS)[None, :, None]).all()
    assert np.frombuffer(record.weights, "<f2").tolist() == [0.25] * routes.size
    assert (record.hits, record.misses, record.stall_ns, record.hints) == (2, 1, 3000, b"")


def test_compute_times_leave_waiting_out(traced: Traced) -> None:
    (record,) = traced.record(traced.forward())
    assert record.started_ns == 100
    assert record.compute_ns == [5, 10, 20, 30]


def test_a_prefill_names_its_rows_and_seeds(traced: Traced) -> None:
    rows = [RequestRow(0, [7, 8], 0, Sampling(seed=11)), RequestRow(4, [9], 0, Sampling(seed=12))]
    (record,) = traced.record(traced.forward(), RunStep(number=0, unit=2, admit=rows))
    assert (record.phase, record.admitted, record.seeds) == ("prefill", [0, 4], [11, 12])


def test_hints_stand_at_their_layer(traced: Traced) -> None:
    (record,) = traced.record(traced.forward(hints={1: bytes([9]) * EXPERTS}))
    assert record.hints == bytes(EXPERTS) + bytes([9]) * EXPERTS + bytes(EXPERTS)


def test_states_are_those_of_the_sampled_tokens(traced: Traced) -> None:
    (record,) = traced.record(traced.forward())
    states = np.frombuffer(record.hidden, "<f2").reshape(3, LAYERS, WIDTH)
    assert record.sampled == [0, 1, 2]
    assert (states == np.arange(3)[:, None, None] + 10 * np.arange(LAYERS)[None, :, None]).all()


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_about_the_share_that_was_asked_for_is_sampled(tmp_path: Path, share: float) -> None:
    traced, count = Traced(tmp_path, share), 2000
    tokens = StepTokens(None, [1] * count, [0] * count, list(range(count)))
    (record,) = traced.record(traced.forward(tokens))
    assert abs(len(record.sampled) - share * count) <= 0.04 * count
    states = np.frombuffer(record.hidden, "<f2").reshape(len(record.sampled), LAYERS, WIDTH)
    assert np.array_equal(states[:, 0, 0], torch.tensor(record.sampled).bfloat16().half().numpy())


def test_a_forward_that_broke_leaves_nothing_in_the_next(traced: Traced) -> None:
    traced.routing.begin(StepTokens(None, [1], [0], [0]))
    traced.routing.add(0, np.zeros((1, TOP_K)), torch.ones(1, WIDTH), torch.ones(1, TOP_K))
    traced.trace.hint(Hint(0, 1, bytes([1]) * EXPERTS))
    (record,) = traced.record(traced.forward())
    assert len(record.compute_ns) == LAYERS + 1 and record.hints == b"" and len(record.sampled) == 3


def test_a_rescued_step_is_not_in_the_trace(traced: Traced) -> None:
    traced.forward()
    assert traced.record(None) == []


def test_without_a_trace_nothing_is_watched() -> None:
    routing: Any = RoutingCollector()
    routing.begin(TOKENS)
    routing.add(0, np.zeros((3, TOP_K)), None, None)
    assert routing.step_routing(0, FeedCounts(0, 0, 0)).top_k == TOP_K
