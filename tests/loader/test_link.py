"""The emulated link holds real copies to its rate, whoever asks."""

from __future__ import annotations

from expertflow.workers.loader.transfer.link import GRACE_NS, EmulatedLink


class Clock:
    """Time passes while somebody sleeps."""

    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


def test_copies_take_the_time_of_the_link() -> None:
    clock, copied = Clock(), []
    link = EmulatedLink(10**9, clock, clock.sleep)
    start_ns = clock.now_ns
    for number in range(5):
        link.carry(10**6, lambda number=number: copied.append(number))
    assert copied == [0, 1, 2, 3, 4]
    assert clock.now_ns - start_ns == 5 * 10**6


def test_time_in_which_nothing_was_carried_is_not_made_up_for() -> None:
    clock = Clock()
    link = EmulatedLink(10**9, clock, clock.sleep)
    link.carry(10**6, lambda: None)
    clock.now_ns += 10**9
    before_ns = clock.now_ns
    link.carry(10**6, lambda: None)
    assert clock.now_ns - before_ns == 10**6


def test_a_late_waker_does_not_slow_the_link() -> None:
    """Oversleeping less than the grace leaves no gap between two copies."""
    clock = Clock()
    link = EmulatedLink(10**9, clock, lambda seconds: clock.sleep(seconds + GRACE_NS / 2e9))
    start_ns = clock.now_ns
    for _ in range(100):
        link.carry(10**6, lambda: None)
    assert clock.now_ns - start_ns <= 100 * 10**6 + GRACE_NS


def test_a_slow_copy_is_not_waited_for_twice() -> None:
    clock = Clock()
    link = EmulatedLink(10**9, clock, clock.sleep)
    before_ns = clock.now_ns
    link.carry(10**6, lambda: clock.sleep(0.5))
    assert clock.now_ns - before_ns == 5 * 10**8


def test_an_expert_takes_the_latency_once() -> None:
    clock = Clock()
    link = EmulatedLink(10**9, clock, clock.sleep, latency_ns=2 * 10**6)
    start_ns = clock.now_ns
    link.carry(10**6, lambda: None, opens=True)
    link.carry(10**6, lambda: None)
    assert clock.now_ns - start_ns == 4 * 10**6


def test_a_delay_ordered_while_the_link_was_busy_follows_without_a_gap() -> None:
    """However late its thread comes: nothing copies here, so no core is needed to go on."""
    clock = Clock()
    link = EmulatedLink(10**9, clock, clock.sleep)
    ordered_ns = clock.now_ns
    link.delay(10**6, ordered_ns)
    clock.now_ns += 5 * 10**6
    link.delay(10**6, ordered_ns)
    link.delay(10**7, ordered_ns)
    assert clock.now_ns - ordered_ns == 12 * 10**6


def test_a_delay_begins_when_it_was_ordered_at_the_earliest() -> None:
    clock = Clock()
    link = EmulatedLink(10**9, clock, clock.sleep)
    link.delay(10**6, clock.now_ns)
    clock.now_ns += 10**9
    ordered_ns = clock.now_ns
    link.delay(10**6, ordered_ns)
    assert clock.now_ns - ordered_ns == 10**6
