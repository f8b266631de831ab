"""Timing: the fastest kernel is chosen, disturbed runs do not count, the time is limited, what fails is left out."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from expertflow.workers.kernels.measuring import LIMIT_S, Measured, Measuring, waited_for_core_s
from expertflow.workers.kernels.table import FLOAT32_TILES, KERNELS, LEFT_FACTOR, LINEAR, NATIVE, ROW_STEPS, LinearShape
from expertflow.workers.kernels.workloads import LinearWorkload, WeightPool, Workload


class FakeMachine:
    """A clock that runs only while kernels do; each takes the seconds that `costs` says for one row."""

    def __init__(self, costs: dict[str, float], per_row: float = 0.0) -> None:
        self.costs, self.per_row = costs, per_row
        self.now = 0.0
        self.switches, self.waited = 0, 0.0
        self.disturb: list[str] = []
        """Kernels whose runs all take ten times as long, as another process has a core."""
        self.unseen = False
        """Whether those runs wait for a core without being switched out."""
        self.runs: list[tuple[str, int]] = []

    def work(self, key: str = "work") -> Workload:
        return FakeWork(self, key)


class FakeWork:
    def __init__(self, machine: FakeMachine, key: str) -> None:
        self.key, self.candidates, self._machine = key, list(machine.costs), machine
        self._rows = 0
        self.numbers: list[int] = []

    def prepare(self, rows: int) -> None:
        self._rows = rows

    def run(self, kernel: str, number: int) -> None:
        machine, cost = self._machine, self._machine.costs[kernel]
        if cost == 0:
            raise RuntimeError("cannot be done here")
        machine.runs.append((kernel, self._rows))
        machine.now += (cost + machine.per_row * self._rows) * (10 if kernel in machine.disturb else 1)
        machine.switches += kernel in machine.disturb and not machine.unseen
        machine.waited += 9 * cost if kernel in machine.disturb else 0.01 * cost
        self.numbers.append(number)


def measured(machine: FakeMachine, works: list[Workload] | None = None, limit_s: float = LIMIT_S) -> Measured:
    report: list[tuple[int, int]] = []
    measuring = Measuring(
        works or [machine.work()],
        lambda done, total: report.append((done, total)),
        limit_s,
        lambda: machine.now,
        lambda: machine.switches,
        lambda: machine.waited,
    )
    found = measuring.run()
    total = len(ROW_STEPS) * len(works or [0])
    assert report == [(done, total) for done in range(total + 1)], "progress"
    return found


def test_the_fastest_kernel_is_chosen_at_every_step() -> None:
    found = measured(FakeMachine({NATIVE: 2e-4, LEFT_FACTOR: 1e-4, LINEAR: 3e-4}))
    assert found.choices == {"work": [LEFT_FACTOR] * len(ROW_STEPS)} and found.is_reliable
    assert found.times_us["work"][0] == {NATIVE: 200.0, LEFT_FACTOR: 100.0, LINEAR: 300.0}


def test_weights_are_taken_in_turn() -> None:
    machine = FakeMachine({NATIVE: 1e-4, LINEAR: 1e-4})
    work = FakeWork(machine, "work")
    measured(machine, [work])
    assert work.numbers == list(range(len(work.numbers))), "no run finds its weights in the cache"


def test_a_kernel_far_behind_is_timed_once_and_left_out_for_more_rows() -> None:
    machine = FakeMachine({LEFT_FACTOR: 1e-4, FLOAT32_TILES: 1e-3})
    measured(machine)
    assert [rows for kernel, rows in machine.runs if kernel == FLOAT32_TILES] == [1, 1], "a warm-up and one run"


def test_a_kernel_twice_as_slow_stays_in_the_race() -> None:
    machine = FakeMachine({LEFT_FACTOR: 1e-4, FLOAT32_TILES: 2e-4})
    measured(machine)
    assert {rows for kernel, rows in machine.runs if kernel == FLOAT32_TILES} == set(ROW_STEPS)


def test_disturbed_runs_do_not_decide() -> None:
    """The better kernel of the first step stays, though another process slowed all its later runs."""
    machine = FakeMachine({LEFT_FACTOR: 1e-4, LINEAR: 1.2e-4})
    work = machine.work()
    machine.disturb = []
    switch = itertools.count()

    class Later(FakeWork):
        def prepare(self, rows: int) -> None:
            super().prepare(rows)
            machine.disturb = [LEFT_FACTOR] if next(switch) == 3 else []

    found = measured(machine, [Later(machine, work.key)])
    assert found.choices["work"][:3] == [LEFT_FACTOR] * 3 and found.choices["work"][4:] == [LEFT_FACTOR] * 6
    assert found.is_reliable, "one step of ten"


@pytest.mark.parametrize("unseen", [False, True], ids=["switched out", "not woken in time"])
def test_a_busy_machine_gives_no_reliable_table(unseen: bool) -> None:
    machine = FakeMachine({LEFT_FACTOR: 1e-4, LINEAR: 1e-4})
    machine.disturb, machine.unseen = [LEFT_FACTOR, LINEAR], unseen
    assert not measured(machine).is_reliable


def test_waits_of_all_threads_are_counted_as_far_as_the_system_tells(tmp_path: Path) -> None:
    for thread, counts in {"7": "5 2000000000 9", "8": "5 500000000 9", "9": "", "10": "5"}.items():
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(counts)
    (tmp_path / "11").mkdir()
    assert waited_for_core_s(tmp_path) == 2.5


def test_the_time_is_limited_and_more_rows_get_the_last_choice() -> None:
    machine = FakeMachine({LEFT_FACTOR: 1e-3, LINEAR: 2e-3}, per_row=5e-2)
    found = measured(machine, [machine.work("a"), machine.work("b")])
    assert machine.now <= LIMIT_S + 2 * 26 * len(machine.costs), "one step more at most"
    assert found.choices == dict.fromkeys("ab", [LEFT_FACTOR] * len(ROW_STEPS))
    assert found.times_us["a"][0] and not found.times_us["b"][-1]


def test_without_any_time_nothing_is_chosen() -> None:
    assert measured(FakeMachine({LEFT_FACTOR: 1e-3}), limit_s=0).choices == {}


def test_a_kernel_that_fails_is_no_candidate(caplog: pytest.LogCaptureFixture) -> None:
    found = measured(FakeMachine({NATIVE: 0, LINEAR: 1e-3}))
    assert found.choices == {"work": [LINEAR] * len(ROW_STEPS)}
    assert "kernel native is left out for work: cannot be done here" in caplog.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_real_products_are_timed_at_every_step(dtype: str) -> None:
    work = LinearWorkload(LinearShape(1024, 96, dtype), WeightPool(1 << 20), None)
    found = Measuring([work], lambda done, total: None, limit_s=60).run()
    assert set(found.choices[work.key]) <= set(KERNELS) - {NATIVE}
    assert all(times for times in found.times_us[work.key]), "every step was timed"


def test_the_pool_gives_every_number_its_own_weights_of_any_dtype() -> None:
    pool = WeightPool(1 << 20)
    for dtype in (torch.bfloat16, torch.float32):
        first, second = pool.take([100, 28], dtype, 0), pool.take([100, 28], dtype, 1)
        assert [len(part) for part in first] == [100, 28]
        assert second[0].data_ptr() - first[0].data_ptr() == 128 * dtype.itemsize
        assert first[0].isfinite().all() and 0.02 < first[0].float().std() < 0.05
    turns = (1 << 20) // (4 * 128)
    assert pool.take([128], torch.float32, turns)[0].data_ptr() == pool.take([128], torch.float32, 0)[0].data_ptr()
