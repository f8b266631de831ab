"""Routing rules: where a request goes, how far from the least busy replica, and how domains are learned."""

from __future__ import annotations

import numpy as np
import pytest
from expertflow.errors import UsageError
from expertflow.runtime.cluster.routing.domains import MAX_DOMAINS, Domains
from expertflow.runtime.cluster.routing.fleet import Fleet, ReplicaState, pack_held
from expertflow.runtime.cluster.routing.rules import Job, RoutingRule, best_job, choose, make_rule

EXPERTS = 64
RULES = ("experts", "two-choices", "round-robin", "prefix")


def uses_of(domain: int, rng: np.random.Generator, domains: int = 4) -> np.ndarray:
    """Return float [EXPERTS]: uses of a request, three quarters of them in the domain's own part of the experts."""
    width = EXPERTS // domains
    uses = rng.poisson(1.0, EXPERTS).astype(float)
    uses[domain * width : (domain + 1) * width] += rng.poisson(9.0, width)
    return uses


def prompt_of(domain: int, rng: np.random.Generator) -> list[int]:
    """Return a prompt with some tokens of its domain's own, and many common ones."""
    return [*rng.integers(0, 50, 12).tolist(), *(100 * (domain + 1) + rng.integers(0, 30, 4)).tolist()]


def taught(domains: int, rng: np.random.Generator, requests: int = 200, labelled: bool = False) -> Domains:
    learned = Domains(EXPERTS)
    for number in range(requests):
        domain = number % domains
        learned.learn(prompt_of(domain, rng), uses_of(domain, rng), f"d{domain}" if labelled else "")
    return learned


def fit(learned: Domains, mixture: np.ndarray, domain: int) -> float:
    """Return the expected share of uses in the domain's own part."""
    width = EXPERTS // 4
    return float(learned.expected_uses(mixture)[domain * width : (domain + 1) * width].sum())


def job_of(domain: int) -> Job:
    mixture = np.zeros(MAX_DOMAINS)
    mixture[domain] = 1.0
    return Job([domain], mixture)


def fleet_of(count: int) -> Fleet:
    fleet = Fleet()
    for number in range(count):
        fleet.add(f"replica-{number}", 16)
    return fleet


def test_a_prompt_says_which_experts_it_will_use() -> None:
    rng = np.random.default_rng(0)
    learned = taught(4, rng)
    for domain in range(4):
        shares = [fit(learned, learned.mixture(prompt_of(domain, rng)), domain) for _ in range(20)]
        assert np.mean(shares) > 0.6, f"domain {domain} is expected to use {np.mean(shares):.2f} of its own experts"


def test_a_label_says_so_without_a_known_token() -> None:
    rng = np.random.default_rng(1)
    learned = taught(4, rng, labelled=True)
    assert fit(learned, learned.mixture([9999], "d2"), 2) > 0.6
    assert fit(learned, learned.mixture([9999], "never seen"), 2) < 0.45


def test_a_shift_of_domains_is_followed() -> None:
    """The tokens of domain 0 come to use what domain 3 used."""
    rng = np.random.default_rng(2)
    learned = taught(2, rng)
    assert fit(learned, learned.mixture(prompt_of(0, rng)), 3) < 0.3
    for _ in range(150):
        learned.learn(prompt_of(0, rng), uses_of(3, rng))
    assert fit(learned, learned.mixture(prompt_of(0, rng)), 3) > 0.55


def test_more_kinds_of_requests_than_domains_are_merged_not_lost() -> None:
    rng = np.random.default_rng(3)
    learned = Domains(EXPERTS, max_domains=3)
    for number in range(120):
        learned.learn([number % 4], uses_of(number % 4, rng))
    assert learned.version > 0
    assert (learned.weights > 0).sum() == 3
    assert np.allclose(learned.means[learned.weights > 0].sum(axis=1), 1, atol=1e-3)
    assert learned.weights.sum() == pytest.approx(sum(0.998**age for age in range(120)), rel=1e-6)


def test_nothing_is_expected_before_anything_was_learned() -> None:
    assert Domains(EXPERTS).mixture([1, 2]).sum() == 0
    assert Domains(EXPERTS).learn([1], np.zeros(EXPERTS)) == -1


def test_forgotten_tokens_make_room() -> None:
    learned = Domains(EXPERTS)
    rng = np.random.default_rng(4)
    for start in range(0, 70_000, 1000):
        learned.learn(range(start, start + 1000), uses_of(0, rng))
    assert learned.mixture(range(69_000, 70_000)).sum() == pytest.approx(1)


@pytest.mark.parametrize("name", RULES)
def test_no_rule_goes_beyond_the_bound(name: str) -> None:
    rule, fleet, rng = make_rule(name), fleet_of(4), np.random.default_rng(5)
    for _ in range(2000):
        place = choose(rule, job_of(int(rng.integers(4))), fleet, slack=3)
        if place is None or rng.random() < 0.5:
            fleet.end(f"replica-{rng.integers(4)}")
            continue
        least = fleet.least
        fleet.send(place, job_of(int(rng.integers(4))).mixture)
        assert fleet.outstanding[place] <= least + 3 + 1


def test_without_the_bound_one_domain_fills_one_replica() -> None:
    """The mutant of the test above: it shows that the rule would go beyond if it were let."""
    rule, fleet = make_rule("experts"), fleet_of(2)
    fleet.served[0, 1] = 1
    for _ in range(16):
        fleet.send(choose(rule, job_of(1), fleet, slack=100) or 0, job_of(1).mixture)
    assert fleet.outstanding.tolist() == [16, 0]


def test_requests_of_a_domain_meet_at_one_replica() -> None:
    """One request at a time, so that nothing but the rule sends them apart: no replica collects all domains."""
    rule, fleet = make_rule("experts"), fleet_of(4)
    went: dict[int, list[int]] = {domain: [] for domain in range(4)}
    for number in range(80):
        place = choose(rule, job_of(number % 4), fleet)
        assert place is not None
        fleet.send(place, job_of(number % 4).mixture)
        fleet.end(fleet.names[place])
        went[number % 4].append(place)
    settled = {domain: set(places[5:]) for domain, places in went.items()}
    assert all(len(places) == 1 for places in settled.values()), settled
    assert len(set.union(*settled.values())) == 4


def test_a_request_goes_where_its_experts_are_held() -> None:
    rule, fleet = make_rule("experts"), fleet_of(3)
    means = np.zeros((MAX_DOMAINS, EXPERTS), dtype=np.float32)
    means[0, :16] = means[1, 16:32] = 1 / 16
    for place, held in enumerate((slice(0, 8), slice(0, 16), slice(16, 32))):
        bits = np.zeros(EXPERTS, dtype=bool)
        bits[held] = True
        state = ReplicaState(time_ns=0, layers=4, experts=16, held=pack_held(bits))
        fleet.publish(f"replica-{place}", state, means)
    assert fleet.at_home[:, :2].tolist() == [[0.5, 0.0], [1.0, 0.0], [0.0, 1.0]]
    assert choose(rule, job_of(0), fleet) == 1
    assert choose(rule, job_of(1), fleet) == 2


def test_a_state_of_another_model_is_ignored() -> None:
    fleet = fleet_of(1)
    fleet.publish(
        "replica-0", ReplicaState(time_ns=0, layers=3, experts=9, held=b"\xff" * 4), np.ones((MAX_DOMAINS, 64))
    )
    fleet.publish("replica-0", ReplicaState(time_ns=0, layers=8, experts=8, held=b"\xff"), np.ones((MAX_DOMAINS, 64)))
    assert not fleet.at_home.any()


def test_a_full_replica_takes_the_waiting_request_that_fits_it() -> None:
    rule, fleet = make_rule("experts"), fleet_of(2)
    fleet.served[0, 0] = fleet.served[1, 1] = 5
    jobs = [job_of(0), job_of(0), job_of(1)]
    assert best_job(rule, jobs, fleet, 1) == 2
    assert best_job(rule, jobs, fleet, 0) == 0
    assert best_job(make_rule("round-robin"), jobs, fleet, 1) == 0


def test_round_robin_goes_round_and_prefixes_stay_together() -> None:
    rule: RoutingRule = make_rule("round-robin")
    fleet = fleet_of(3)
    places = []
    for _ in range(6):
        place = choose(rule, job_of(0), fleet)
        assert place is not None
        fleet.send(place, job_of(0).mixture)
        places.append(place)
    assert sorted(places[:3]) == sorted(places[3:]) == [0, 1, 2]
    prefix = make_rule("prefix")
    fleet = fleet_of(8)
    beginning = list(range(32))
    homes = {choose(prefix, Job([*beginning, tail], np.zeros(MAX_DOMAINS)), fleet) for tail in range(5)}
    assert len(homes) == 1
    assert len({choose(prefix, Job([start] * 32, np.zeros(MAX_DOMAINS)), fleet) for start in range(40)}) > 4


def test_a_removed_replica_leaves_nothing_to_its_successor() -> None:
    fleet = fleet_of(2)
    fleet.send(0, job_of(0).mixture)
    fleet.remove("replica-0")
    assert choose(make_rule("experts"), job_of(0), fleet) == 1
    assert fleet.add("new", 4) == 0
    assert fleet.outstanding[0] == 0 and not fleet.served[0].any() and len(fleet) == 2


def test_an_unknown_rule_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="no routing rule 'fastest'"):
        make_rule("fastest")
