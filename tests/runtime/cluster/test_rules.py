"""Routing rules: where a request goes, how far from the least busy replica, and how domains are learned."""

from __future__ import annotations

import numpy as np
import pytest
from expertflow.errors import UsageError
from expertflow.runtime.cluster.routing import rules
from expertflow.runtime.cluster.routing.fleet import Fleet, ReplicaState, pack_held
from expertflow.runtime.cluster.routing.forecasts import FEATURES, Forecasts
from expertflow.runtime.cluster.routing.rules import Job, RoutingRule, choose, make_rule

EXPERTS = 64
RULES = ("experts", "two-choices", "round-robin", "prefix")


WIDTH = EXPERTS // 4
"""Experts of a domain's own."""


def experts_of(domain: int, rng: np.random.Generator) -> np.ndarray:
    """Return int64 [2]: two experts of a token of a domain, three quarters of them in the domain's own part."""
    own = domain * WIDTH + rng.integers(0, WIDTH, 2)
    return np.where(rng.random(2) < 0.75, own, rng.integers(0, EXPERTS, 2))


def prompt_of(domain: int, rng: np.random.Generator) -> list[int]:
    """Return a prompt with some tokens of its domain's own, and many common ones."""
    return [*rng.integers(0, 50, 12).tolist(), *(100 * (domain + 1) + rng.integers(0, 30, 4)).tolist()]


def teach(learned: Forecasts, domain: int, rng: np.random.Generator, uses: int | None = None, label: str = "") -> None:
    """Learn from a request of a domain, whose tokens use the experts of domain `uses`."""
    tokens = prompt_of(domain, rng)
    used = domain if uses is None else uses
    learned.learn(tokens, np.stack([experts_of(used, rng) for _ in tokens]), label)


def taught(domains: int, rng: np.random.Generator, requests: int = 200, labelled: bool = False) -> Forecasts:
    learned = Forecasts(EXPERTS)
    for number in range(requests):
        domain = number % domains
        teach(learned, domain, rng, label=f"d{domain}" if labelled else "")
    return learned


def nearest(learned: Forecasts, forecast: np.ndarray) -> int:
    """Return the domain whose own experts will be used most."""
    return int((forecast + learned.mean)[:EXPERTS].reshape(4, WIDTH).sum(axis=1).argmax())


def job_of(domain: int) -> Job:
    forecast = np.zeros(FEATURES, dtype=np.float32)
    forecast[domain] = 1.0
    return Job([domain], forecast)


def place_of(rule: RoutingRule, job: Job, fleet: Fleet, slack: int = 4) -> int | None:
    chosen = choose(rule, [job], fleet, slack)
    return None if chosen is None else chosen[1]


def fleet_of(count: int) -> Fleet:
    fleet = Fleet()
    for number in range(count):
        fleet.add(f"replica-{number}", 16)
    return fleet


def test_a_prompt_says_which_experts_it_will_use() -> None:
    rng = np.random.default_rng(0)
    learned = taught(4, rng)
    for domain in range(4):
        found = [nearest(learned, learned.forecast(prompt_of(domain, rng))) for _ in range(20)]
        assert found.count(domain) >= 18, f"domain {domain} was taken for {found}"


def test_a_forecast_is_the_mean_of_what_its_tokens_used() -> None:
    """Less the mean of all, and with each token counted once with that mean."""
    learned = Forecasts(EXPERTS)
    for _ in range(30):
        learned.learn([1, 2], np.array([[0, 1], [2, -1]]))
    expected = np.zeros(FEATURES)
    expected[[0, 1, 2]] = 0.25, 0.25, 0.5
    assert np.allclose(learned.forecast([1]), (np.eye(FEATURES)[[0, 1]].mean(axis=0) - expected) * 30 / 31, atol=1e-4)
    assert np.allclose(learned.forecast([1, 2]), 0, atol=1e-6)
    assert np.allclose(learned.forecast([1, 9]), learned.forecast([1]) / 2), "an unknown token says nothing"


def test_a_label_says_so_without_a_known_token() -> None:
    rng = np.random.default_rng(1)
    learned = taught(4, rng, labelled=True)
    assert nearest(learned, learned.forecast([9999], "d2")) == 2
    assert not learned.forecast([9999], "never seen").any()


def test_a_shift_of_domains_is_followed() -> None:
    """The tokens of domain 0 come to use what domain 3 used."""
    rng = np.random.default_rng(2)
    learned = taught(2, rng)
    assert nearest(learned, learned.forecast(prompt_of(0, rng))) == 0
    for _ in range(150):
        teach(learned, 0, rng, uses=3)
    assert nearest(learned, learned.forecast(prompt_of(0, rng))) == 3


def test_more_experts_than_columns_keep_kinds_apart() -> None:
    """Products of forecasts keep their value: of one kind near 1, of two kinds near 0."""
    learned = Forecasts(40 * FEATURES)
    rng = np.random.default_rng(3)
    kinds = [rng.choice(40 * FEATURES, 200, replace=False) for _ in range(2)]
    for number in range(60):
        learned.learn([number % 2] * 20, rng.choice(kinds[number % 2], (20, 8)))
    one, two = (learned.forecast([kind]) for kind in range(2))
    again = learned.features(np.bincount(kinds[0], minlength=40 * FEATURES) / 200.0)
    assert one @ again > 3 * abs(two @ again) or two @ again < 0 < one @ again


def test_nothing_is_expected_before_anything_was_learned() -> None:
    assert not Forecasts(EXPERTS).forecast([1, 2]).any()


def test_forgotten_tokens_make_room() -> None:
    learned = Forecasts(EXPERTS)
    rng = np.random.default_rng(4)
    for start in range(0, 70_000, 10_000):
        tokens = range(start, start + 10_000)
        learned.learn(tokens, rng.integers(0, EXPERTS, (len(tokens), 2)))
    assert learned.forecast([69_999]).any() and not learned.forecast([5]).any()


@pytest.mark.parametrize("name", RULES)
def test_no_rule_goes_beyond_the_bound(name: str) -> None:
    rule, fleet, rng = make_rule(name), fleet_of(4), np.random.default_rng(5)
    for _ in range(2000):
        place = place_of(rule, job_of(int(rng.integers(4))), fleet, slack=3)
        if place is None or rng.random() < 0.5:
            fleet.end(f"replica-{rng.integers(4)}")
            continue
        least = fleet.least
        fleet.send(place, job_of(int(rng.integers(4))).forecast)
        assert fleet.outstanding[place] <= least + 3 + 1


def test_without_the_bound_one_domain_fills_one_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant of the test above: it shows that the rule would go beyond if it were let."""
    monkeypatch.setattr(rules.ByExperts, "bound", lambda self, slack, least: slack)  # type: ignore[arg-type]
    rule, fleet = make_rule("experts"), fleet_of(2)
    fleet.homes.send(0, job_of(1).forecast)
    for _ in range(16):
        fleet.send(place_of(rule, job_of(1), fleet, slack=100) or 0, job_of(1).forecast)
    assert fleet.outstanding.tolist() == [16, 0]


def test_few_requests_are_spread_evenly_whatever_they_use() -> None:
    """The end of a burst: a request more than elsewhere would be waited for."""
    rule, fleet = make_rule("experts"), fleet_of(4)
    fleet.homes.send(0, job_of(1).forecast)
    for _ in range(48):
        place = place_of(rule, job_of(1), fleet)
        assert place is not None
        fleet.send(place, job_of(1).forecast)
    assert fleet.outstanding.tolist() == [12] * 4


def test_of_requests_that_come_together_each_replica_gets_its_own_kind() -> None:
    rule, fleet, rng = make_rule("experts"), fleet_of(4), np.random.default_rng(6)
    for kind in range(4):
        fleet.homes.send(kind, job_of(kind).forecast)
    kinds = rng.permutation(np.repeat(np.arange(4), 4)).tolist()
    while kinds:
        job, place = choose(rule, [job_of(kind) for kind in kinds], fleet) or (0, -1)
        assert place == kinds[job]
        fleet.send(place, job_of(kinds.pop(job)).forecast)
    assert fleet.outstanding.tolist() == [4] * 4


def test_a_large_kind_takes_several_replicas_and_similar_ones_share() -> None:
    """Six of ten requests are of kind 0; homes settle so that each replica still gets a quarter of all."""
    rule, fleet, rng = make_rule("experts"), fleet_of(4), np.random.default_rng(7)
    went = np.zeros((4, 4), dtype=int)
    for number in range(100):
        kinds, busy = rng.permutation([0] * 12 + [1] * 4 + [2] * 2 + [3] * 2).tolist(), list[int]()
        while kinds:
            job, place = choose(rule, [job_of(kind) for kind in kinds], fleet) or (0, -1)
            fleet.send(place, job_of(kinds[job]).forecast)
            went[place, kinds.pop(job)] += number >= 50
            busy.append(place)
        for place in busy:
            fleet.end(fleet.names[place])
    assert (went.sum(axis=1) == 250).all(), went
    assert (went[:, 0] == 250).any() and ((went > 0).sum(axis=1) <= 2).all(), went
    assert all((went[:, kind] > 0).sum() == 1 for kind in (1, 2, 3)), went


def test_requests_of_a_domain_meet_at_one_replica() -> None:
    """One request at a time, so that nothing but the rule sends them apart: no replica collects all domains."""
    rule, fleet = make_rule("experts"), fleet_of(4)
    went: dict[int, list[int]] = {domain: [] for domain in range(4)}
    for number in range(80):
        place = place_of(rule, job_of(number % 4), fleet)
        assert place is not None
        fleet.send(place, job_of(number % 4).forecast)
        fleet.end(fleet.names[place])
        went[number % 4].append(place)
    settled = {domain: set(places[5:]) for domain, places in went.items()}
    assert all(len(places) == 1 for places in settled.values()), settled
    assert len(set.union(*settled.values())) == 4


def state_of(held: slice) -> ReplicaState:
    bits = np.zeros(EXPERTS, dtype=bool)
    bits[held] = True
    return ReplicaState(time_ns=0, layers=4, experts=16, held=pack_held(bits))


def test_a_request_goes_where_its_experts_are_held() -> None:
    """Replicas were sent nothing yet, as after a start of the front."""
    rule, fleet, learned = make_rule("experts"), fleet_of(3), Forecasts(EXPERTS)
    for place, held in enumerate((slice(0, 8), slice(0, 16), slice(16, 32))):
        fleet.publish(f"replica-{place}", state_of(held), learned)
    jobs = [Job([0], learned.features(np.arange(EXPERTS) // 16 == part)) for part in range(2)]
    assert place_of(rule, jobs[1], fleet) == 2
    assert place_of(rule, jobs[0], fleet) in (0, 1)
    upper = Job([0], learned.features((np.arange(EXPERTS) >= 8) & (np.arange(EXPERTS) < 16)))
    assert place_of(rule, upper, fleet) == 1


def test_a_state_of_another_model_is_ignored() -> None:
    fleet, learned = fleet_of(2), Forecasts(EXPERTS)
    fleet.publish("replica-0", ReplicaState(time_ns=0, layers=3, experts=9, held=b"\xff" * 4), learned)
    fleet.publish("replica-0", ReplicaState(time_ns=0, layers=8, experts=8, held=b"\xff"), learned)
    assert not fleet.homes.fits(np.eye(FEATURES), np.arange(2)).any()
    fleet.publish("replica-0", state_of(slice(0, 8)), learned)
    fleet.publish("replica-1", state_of(slice(8, 16)), learned)
    assert fleet.homes.fits(np.eye(FEATURES), np.arange(2)).any()


def test_a_replica_with_room_takes_the_waiting_request_that_fits_it() -> None:
    rule, fleet = make_rule("experts"), fleet_of(2)
    for kind in range(2):
        fleet.homes.send(kind, job_of(kind).forecast)
    fleet.outstanding[0] = 16
    jobs = [job_of(0), job_of(0), job_of(1)]
    assert choose(rule, jobs, fleet, slack=16) == (2, 1)
    fleet.outstanding[:] = 0, 16
    assert choose(rule, jobs, fleet, slack=16) == (0, 0)


def test_round_robin_goes_round_and_prefixes_stay_together() -> None:
    rule: RoutingRule = make_rule("round-robin")
    fleet = fleet_of(3)
    places = []
    for _ in range(6):
        place = place_of(rule, job_of(0), fleet)
        assert place is not None
        fleet.send(place, job_of(0).forecast)
        places.append(place)
    assert sorted(places[:3]) == sorted(places[3:]) == [0, 1, 2]
    prefix = make_rule("prefix")
    fleet = fleet_of(8)
    beginning = list(range(32))
    homes = {place_of(prefix, Job([*beginning, tail], np.zeros(FEATURES)), fleet) for tail in range(5)}
    assert len(homes) == 1
    assert len({place_of(prefix, Job([start] * 32, np.zeros(FEATURES)), fleet) for start in range(40)}) > 4


def test_a_removed_replica_leaves_nothing_to_its_successor() -> None:
    fleet = fleet_of(2)
    fleet.send(0, job_of(0).forecast)
    fleet.remove("replica-0")
    assert place_of(make_rule("experts"), job_of(0), fleet) == 1
    assert fleet.add("new", 4) == 0
    assert fleet.outstanding[0] == 0 and not fleet.homes.fits(np.eye(FEATURES), np.arange(2)).any() and len(fleet) == 2


def test_an_unknown_rule_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="no routing rule 'fastest'"):
        make_rule("fastest")
