"""Timed replay: the counts of event-atomic replay where time does not matter, and times that can be worked out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from expertflow.ipc.messages import PredictStep, StepRouting
from expertflow.runtime.replay.atomic import Sharing, make_cache, replay
from expertflow.runtime.replay.hints import EmulatedHints, Quality
from expertflow.runtime.replay.machine import Machine
from expertflow.runtime.replay.predictions import ForecasterPredictions
from expertflow.runtime.replay.steps import Program, batch_steps, uses_of
from expertflow.runtime.replay.timed import TimedOutcome, replay_timed
from expertflow.tests.runtime.replay.made import random_trace
from expertflow.workers.loader.ledger import Ledger
from expertflow.workers.loader.policies import POLICIES, make_policy
from expertflow.workers.predictor.base.forecaster import Forecaster, Part
from expertflow.workers.traces.trace import Trace

MS = 10**6


def ledger_of(program: Program, slots: int, policy: str = "lru", sharing: Sharing = "layer") -> Ledger:
    shape = program.layers, program.experts, program.top_k
    return Ledger(slots, *shape, make_policy(policy, *shape), by_layer=sharing == "layer")


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("sharing", ["pool", "layer"])
@pytest.mark.parametrize("policy", POLICIES)
def test_on_demand_it_counts_as_event_atomic_replay(policy: str, sharing: Sharing, rows: int) -> None:
    trace = random_trace(4, [12, 7, 16, 9])
    steps = batch_steps(trace, rows)
    program, uses = Program(trace, steps), uses_of(trace, steps)
    timed = replay_timed(program, ledger_of(program, 14, policy, sharing), 14, Machine())
    counted = replay(uses, make_policy(policy, 3, 8, 2), make_cache(sharing, uses, 14))
    assert (timed.hits, timed.misses, timed.ledger.loads) == (counted.hits, counted.loads, counted.loads)
    assert timed.ledger.invalid == 0 and timed.total_ns == timed.stall_ns == 0


def chain_trace(*routes: list[list[int]]) -> Trace:
    """One sequence of a model of 8 experts; `routes[token][layer]` are lists of experts, or one."""
    array = np.array(routes, dtype=np.uint16)
    return Trace(
        routes=array.reshape(len(routes), array.shape[1], -1),
        token_ids=np.zeros(len(routes), dtype=np.int64),
        offsets=np.array([0, len(routes)]),
        expert_count=8,
    )


def run(trace: Trace, machine: Machine, slots: int = 7, **more: object) -> TimedOutcome:
    program = Program(trace, batch_steps(trace, 1))
    return replay_timed(program, ledger_of(program, slots, sharing="pool"), slots, machine, **more)  # type: ignore[arg-type]


def test_a_miss_costs_its_transfer_and_a_hit_nothing() -> None:
    """Two steps of one layer with the same two experts, 4 ms each over the link, which carries one after the other."""
    machine = Machine(
        expert_bytes=4000, link_bytes_per_s=1e6, layer_ns=1 * MS, expert_ns=2 * MS, token_ns=MS, step_ns=5 * MS
    )
    outcome = run(chain_trace([[0, 1]], [[0, 1]]), machine)
    # First step: 5 + 1, wait 4 for the first expert, compute it (3) while the second comes, wait 1 more, compute it.
    assert (outcome.hits, outcome.misses, outcome.stall_ns) == (2, 2, 5 * MS)
    assert outcome.total_ns == 2 * (5 + 1 + 2 * 3) * MS + 5 * MS
    assert outcome.stall_share == 5 / 29


def test_messages_and_decisions_take_their_time() -> None:
    """Need and answer travel 1 ms each; the ledger thinks 0.1 ms about the need and about the end of the transfer."""
    machine = Machine(expert_bytes=2000, link_bytes_per_s=1e6, message_ns=MS, decide_ns=MS // 10, layer_ns=9 * MS)
    assert run(chain_trace([[3]]), machine).stall_ns == 2 * MS + 2 * MS + MS // 5


def test_an_urgent_transfer_overtakes_by_chunks() -> None:
    """A hint brings in the wrong expert 7 for layer 1 (10 chunks of 1 ms, one reader); the need comes when two are
    under way, waits for the one that is on the link, and goes before the others."""
    trace, machine = (
        chain_trace([[0], [1]], [[0], [2]]),
        Machine(
            expert_bytes=10_000, chunk_bytes=1000, link_bytes_per_s=1e6, readers=1, layer_ns=MS // 2, expert_ns=2 * MS
        ),
    )

    class Wrong:
        def scores(self, step: int, layer: int) -> bytes | None:
            return bytes([0] * 7 + [255]) if step == 1 else None

    without, with_hint = run(trace, machine), run(trace, machine, hints=Wrong())
    assert with_hint.ledger.prefetches == 1 and with_hint.misses == without.misses == 3
    # The hint came 2.5 ms before the need: half a chunk is left to wait for.
    assert with_hint.stall_ns - without.stall_ns == MS // 2


def test_right_hints_hide_transfers_behind_compute() -> None:
    trace = random_trace(7, [40])
    program = Program(trace, batch_steps(trace, 1))
    machine = Machine(expert_bytes=1000, link_bytes_per_s=1e6, readers=2, layer_ns=MS, expert_ns=2 * MS)
    hints = EmulatedHints(trace, batch_steps(trace, 1), Quality(recall=1.0, precision=1.0))
    blind = replay_timed(program, ledger_of(program, 12), 12, machine)
    told = replay_timed(program, ledger_of(program, 12), 12, machine, hints=hints)
    assert told.hit_rate > blind.hit_rate and told.stall_ns < blind.stall_ns / 2
    assert told.ledger.useful + told.ledger.promoted == told.ledger.prefetches and told.ledger.wasted == 0
    assert told.hits + told.misses == blind.hits + blind.misses


class Clairvoyant(Forecaster):
    """Forecasts exactly, and notes what it was asked and taught."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.layers, program.experts)
        self._program = program
        self.heard: list[tuple[str, int]] = []

    def parts(self, request: PredictStep) -> Iterator[Part]:
        self.heard.append(("forecast", request.step))
        certain = np.zeros((1, self._layers, self._experts), dtype=np.float32)
        for layer in range(self._layers):
            certain[0, layer, list(self._program.experts_of(request.step, layer))] = 1.0
        yield np.array([0]), certain

    def learn(self, routing: StepRouting) -> None:
        self.heard.append(("learn", routing.step))


def test_plans_are_made_in_time_and_prefetch() -> None:
    trace = random_trace(7, [30])
    program = Program(trace, batch_steps(trace, 1))
    machine = Machine(expert_bytes=1000, link_bytes_per_s=1e6, layer_ns=MS, expert_ns=2 * MS)
    predictor = Clairvoyant(program)
    blind = replay_timed(program, ledger_of(program, 12), 12, machine)
    told = replay_timed(
        program, ledger_of(program, 12), 12, machine, predictions=ForecasterPredictions(program, predictor, MS)
    )
    assert predictor.heard == [(what, step) for step in range(30) for what in ("forecast", "learn")]
    assert told.stall_ns < blind.stall_ns / 2 and told.ledger.useful > 0
    late = replay_timed(
        program, ledger_of(program, 12), 12, machine, predictions=ForecasterPredictions(program, predictor, 100 * MS)
    )
    assert late.stall_ns > told.stall_ns


def test_recalls_are_heard_while_the_layer_computes() -> None:
    """Six slots, full; 3 and 4 are there (2 ms each), 6 is missing. The need arrives after 1/4 ms, the recall after
    1/2; it is heard after the first expert, at 2 ms, and its answer arrives at 2 1/4. The transfer takes 3 ms, and its
    end is heard at 5 1/2: waiting from the end of the second expert, at 4, takes 1 1/2 ms."""
    machine = Machine(expert_bytes=3000, link_bytes_per_s=1e6, expert_ns=2 * MS, message_ns=MS // 4)
    steps = [[[0, 1, 2]], [[3, 4, 5]], [[3, 4, 6]]]
    whole, begin = run(chain_trace(*steps), machine, slots=6), run(chain_trace(*steps[:2]), machine, slots=6)
    assert (whole.hits, whole.misses) == (2, 7)
    assert whole.stall_ns - begin.stall_ns == 3 * MS // 2


def test_it_is_deterministic() -> None:
    trace = random_trace(2, [20, 20])
    steps = batch_steps(trace, 2)
    machine = Machine(expert_bytes=3 << 20, link_bytes_per_s=1e9, layer_ns=MS, expert_ns=MS, message_ns=MS // 10)
    runs = []
    for _ in range(2):
        hints = EmulatedHints(trace, steps, Quality(recall=0.8, precision=0.8), seed=3)
        program = Program(trace, steps)
        runs.append(replay_timed(program, ledger_of(program, 12), 12, machine, hints=hints))
    assert runs[0] == runs[1]
