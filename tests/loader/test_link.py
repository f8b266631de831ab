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
