"""The simulation: its slots count as replay does, its requests all end, and more replicas do more."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from expertflow.errors import UsageError
from expertflow.runtime.cluster.simulation.expert_cache import LruCache, PolicyCache, make_expert_cache
from expertflow.runtime.cluster.simulation.machine import ReplicaMachine
from expertflow.runtime.cluster.simulation.report import replica_counts, write_outcomes
from expertflow.runtime.cluster.simulation.simulator import SimulatedLoad, SimulatedOutcome, simulate
from expertflow.runtime.cluster.simulation.workload import Workload
from expertflow.runtime.replay.atomic import make_cache, replay
from expertflow.runtime.replay.steps import batch_steps, uses_of
from expertflow.workers.loader.policies import make_policy
from expertflow.workers.traces.trace import Trace

LAYERS, EXPERTS, TOP_K, DOMAINS = 3, 16, 2, 4
MACHINE = ReplicaMachine(
    batch_size=4, slots=14, expert_bytes=1_000_000, link_bytes_per_s=1e9, step_s=0.001, publish_s=0.05
)


def trace_of(sequences: int = 80, tokens: int = 12, seed: int = 0) -> Trace:
    """Return a trace of sequences of four kinds in turn; each kind uses a quarter of the experts, and some others."""
    rng = np.random.default_rng(seed)
    kinds = np.repeat(np.arange(sequences) % DOMAINS, tokens)
    own = kinds[:, None, None] * 4 + rng.integers(0, 4, (len(kinds), LAYERS, TOP_K))
    stray = rng.random((len(kinds), LAYERS, TOP_K)) < 0.05
    routes = np.where(stray, rng.integers(0, EXPERTS, own.shape), own).astype(np.uint16)
    ids = kinds * 100 + rng.integers(0, 20, len(kinds))
    return Trace(routes=routes, token_ids=ids, offsets=np.arange(sequences + 1) * tokens, expert_count=EXPERTS)


def workload(seed: int = 0) -> Workload:
    made = Workload(trace_of(seed=seed), prompt_share=0.5, max_output=64)
    made.shuffle(seed)
    return made


def outcome(machine: ReplicaMachine = MACHINE, **load: object) -> SimulatedOutcome:
    return simulate(workload(), machine, SimulatedLoad(**({"replicas": 4, "requests": 200} | load)))  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["lru", "popularity"])
def test_slots_count_as_a_replay_does(policy: str) -> None:
    trace = trace_of()
    steps = batch_steps(trace, 4)
    uses = uses_of(trace, steps)
    slots = 20
    expected = replay(uses, make_policy(policy, LAYERS, EXPERTS, TOP_K), make_cache("pool", uses, slots))
    cache = PolicyCache(policy, LAYERS, EXPERTS, TOP_K, slots)
    counts = [cache.run(uses.of(step)) for step in range(uses.steps)]
    assert sum(count.hits for count in counts) == expected.hits
    assert sum(count.loads for count in counts) == expected.loads
    assert cache.held().sum() <= slots


def test_the_fast_lru_counts_as_the_policy_does_where_a_layer_fits() -> None:
    """Within a layer the two order experts differently, so the counts may differ by little."""
    trace = trace_of()
    uses = uses_of(trace, batch_steps(trace, 4))
    fast, slow = make_expert_cache("lru", LAYERS, EXPERTS, TOP_K, 40), PolicyCache("lru", LAYERS, EXPERTS, TOP_K, 40)
    assert isinstance(fast, LruCache)
    hits = [sum(cache.run(uses.of(step)).hits for step in range(uses.steps)) for cache in (fast, slow)]
    assert abs(hits[0] - hits[1]) <= 0.03 * len(uses.keys)
    assert fast.held().sum() == 40


def test_every_request_ends_and_every_output_token_is_counted() -> None:
    done = outcome()
    assert done.ended == 200 and done.moved == 0 and done.tokens == 200 * 6


def test_two_replicas_do_nearly_twice_as_much() -> None:
    """By chance: under routing by experts, each of two holds fewer kinds, and does more than one alone."""
    one, two = (outcome(replicas=count, requests=100 * count, rule="two-choices") for count in (1, 2))
    assert 1.7 < two.tokens_per_s / one.tokens_per_s < 2.6


def test_routing_by_experts_loads_less_where_domains_differ() -> None:
    by_experts, by_chance = outcome(requests=600), outcome(requests=600, rule="two-choices")
    assert by_experts.loads_per_token < 0.8 * by_chance.loads_per_token
    assert by_experts.tokens_per_s > by_chance.tokens_per_s
    assert by_experts.imbalance < 1.5


def test_nothing_is_gained_where_all_requests_are_alike() -> None:
    """The rule must not lose either: it falls back to the least busy replica."""
    trace = trace_of()
    same = Trace(routes=trace.routes % 4, token_ids=trace.token_ids % 20, offsets=trace.offsets, expert_count=EXPERTS)
    made = Workload(same, 0.5, 64)
    rates = [simulate(made, MACHINE, SimulatedLoad(replicas=4, requests=200, rule=rule)).tokens_per_s
             for rule in ("experts", "two-choices")]  # fmt: skip
    assert rates[0] > 0.85 * rates[1]


def test_requests_survive_the_deaths_of_replicas() -> None:
    machine = msgspec.structs.replace(MACHINE, fails_after_s=0.3, noticed_after_s=0.01, repaired_after_s=0.1)
    done = outcome(machine, requests=400)
    assert done.ended == 400 and done.moved > 0
    assert done.tokens_per_s < outcome(requests=400).tokens_per_s


def test_the_same_seed_gives_the_same_figures() -> None:
    machine = msgspec.structs.replace(MACHINE, fails_after_s=0.5)
    assert outcome(machine, seed=3, rate=50.0) == outcome(machine, seed=3, rate=50.0)
    assert outcome(machine, seed=3, rate=50.0) != outcome(machine, seed=4, rate=50.0)


@pytest.mark.parametrize(
    "text, counts",
    [("4", [4]), ("1,2,4", [1, 2, 4]), ("1..1000", [1, 10, 100, 1000]), ("2..50", [2, 10, 50]), ("3..3", [3])],
)
def test_numbers_of_replicas_are_read(text: str, counts: list[int]) -> None:
    assert replica_counts(text) == counts


@pytest.mark.parametrize("text", ["", "x", "0", "5..2", "1..100000", "1,,2"])
def test_other_numbers_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no number of replicas"):
        replica_counts(text)


def test_figures_are_written_with_what_they_assume(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    write_outcomes(file, [outcome(requests=20)], MACHINE)
    content = msgspec.json.decode(file.read_bytes())
    assert content["outcomes"][0]["ended"] == 20 and len(content["assumptions"]) >= 5
    with pytest.raises(UsageError, match="cannot be written"):
        write_outcomes(tmp_path / "none" / "out.json", [], MACHINE)


def test_a_trace_without_sequences_is_refused() -> None:
    with pytest.raises(UsageError, match="no sequence of two tokens"):
        Workload(trace_of(tokens=1), 0.5, 8)
    with pytest.raises(UsageError, match="must be above 0"):
        ReplicaMachine(slots=0)
