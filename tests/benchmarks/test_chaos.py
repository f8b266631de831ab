"""The program that strikes workers: what it draws, what it counts as a fault, and a short run of it."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from expertflow.benchmarks.chaos import __main__ as chaos
from expertflow.benchmarks.chaos import faults
from expertflow.benchmarks.chaos.faults import KINDS, STAGES, Fault, draw_fault, strike
from expertflow.benchmarks.chaos.judging import find_faults
from expertflow.benchmarks.chaos.repeats import Repeats
from expertflow.benchmarks.chaos.requests import WAYS, Ended, PlannedRequest, draw_requests, draw_ways
from expertflow.benchmarks.chaos.rounds import Setting
from expertflow.ipc.messages import Submit
from expertflow.runtime.client.request import BatchUpdates, ClientRequest
from expertflow.runtime.command_line.registry import parse
from expertflow.runtime.commands.serve import Serve

PLANNED = PlannedRequest(0, [1, 2], 3, 0.0, 7, honours_end=False)
QUIET = {0: ([5, 6, 7], "abc")}
GOOD = Ended(0, "client", [5, 6, 7], [5, 6, 7], "abc", 1)


def test_the_same_seed_draws_the_same_requests() -> None:
    drawn = draw_requests(3, 50, 100, 32)
    assert drawn == draw_requests(3, 50, 100, 32) != draw_requests(4, 50, 100, 32)
    assert {len(each.prompt_ids) > 40 for each in drawn} == {True, False}, "some begin alike, some do not"
    assert all(1 <= each.max_new_tokens <= 32 and max(each.prompt_ids) < 100 for each in drawn)


def test_every_request_goes_one_way() -> None:
    drawn = draw_requests(0, 30, 100, 8)
    ways = draw_ways(random.Random(1), drawn)
    assert sorted(each.number for way in WAYS for each in ways[way]) == list(range(30))
    assert ways != draw_ways(random.Random(2), drawn)


def test_all_kinds_of_faults_are_drawn_at_all_stages() -> None:
    rng = random.Random(0)
    drawn = [draw_fault(rng) for _ in range(300)]
    assert {fault.kind for fault in drawn} == set(KINDS)
    assert {stage for fault in drawn for stage in fault.stages} == set(STAGES)
    assert all(len(set(fault.stages)) == 2 for fault in drawn if fault.kind == "two at once")


@pytest.mark.parametrize(
    ("fault", "sent"),
    [
        (Fault("kill", ("loader",), 0.0), [(3, signal.SIGKILL)]),
        (Fault("crash", ("compute",), 0.0), [(4, signal.SIGSEGV)]),
        (Fault("hang", ("compute",), 0.0), [(4, signal.SIGSTOP)]),
        (Fault("two at once", ("scheduler", "compute"), 0.0), [(1, signal.SIGKILL), (4, signal.SIGKILL)]),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_a_fault_sends_signals(
    fault: Fault, sent: list[tuple[int, signal.Signals]], monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(faults.os, "kill", lambda pid, number: signals.append((pid, number)))
    assert strike(fault, pids_of({"scheduler": [1], "loader": [3], "compute": [4, 5]})) == list(fault.stages)
    assert signals == sent


def pids_of(table: dict[str, list[int]]) -> Callable[[str], list[int]]:
    return lambda stage: table.get(stage, [])


def test_a_starved_worker_runs_on_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    signals: list[int] = []
    monkeypatch.setattr(faults.os, "kill", lambda pid, number: signals.append(number))
    monkeypatch.setattr(faults.time, "sleep", lambda seconds: None)
    now_s = iter([0.0, 0.1, 0.6, 1.1])
    monkeypatch.setattr(faults.time, "monotonic", lambda: next(now_s))
    assert strike(Fault("starve", ("loader",), 1.0), pids_of({"loader": [3]})) == []
    assert signals == [signal.SIGSTOP, signal.SIGCONT] * 2


def test_a_stage_without_a_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults.os, "kill", lambda pid, number: pytest.fail("nobody is there"))
    assert strike(Fault("kill", ("loader",), 0.0), pids_of({})) == []


def test_a_request_that_ended_once_with_the_quiet_tokens_is_no_fault() -> None:
    assert find_faults([PLANNED], [GOOD], QUIET) == []


@pytest.mark.parametrize(
    ("ended", "kind"),
    [
        ([], "lost"),
        ([GOOD, GOOD], "doubled"),
        ([GOOD._replace(ends=0)], "lost"),
        ([GOOD._replace(ends=2)], "doubled"),
        ([GOOD._replace(token_ids=[5, 6, 8], streamed_ids=[5, 6, 8])], "different"),
        ([GOOD._replace(token_ids=[5, 6], streamed_ids=[5, 6])], "different"),
        ([GOOD._replace(streamed_ids=[5, 6, 6, 7])], "different"),
        ([GOOD._replace(text="abd")], "different"),
        ([GOOD._replace(error="EngineError: gone", token_ids=[], ends=0)], "failed"),
    ],
    ids=["no end", "two ends", "no end told", "end told twice", "token", "short", "doubled token", "text", "error"],
)
def test_whatever_is_wrong_with_a_request_is_a_fault(ended: list[Ended], kind: str) -> None:
    assert [found for found, _ in find_faults([PLANNED], ended, QUIET)] == [kind]


def test_tokens_that_come_again_are_compared() -> None:
    submit = Submit(request_id="a", prompt_ids=[1], max_new_tokens=3)
    request = ClientRequest(0, submit, BatchUpdates())
    request.tokens = [5, 6]
    repeats = Repeats()
    repeats.note(request, [6, 7], 1)
    assert (repeats.tokens, repeats.changed) == (1, [])
    repeats.note(request, [5, 9], 0)
    assert repeats.tokens == 3 and len(repeats.changed) == 1


@pytest.mark.parametrize("setting", chaos.SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_one_that_serve_takes(setting: Setting) -> None:
    served = parse(["serve", *chaos.COMMON, *setting.words])
    assert isinstance(served, Serve)
    assert served.engine.batch_invariant == (setting.numerics == "batch-invariant")
    assert served.engine.dtype == ("auto" if served.engine.batch_invariant else "float32")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_run_loses_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I4 and I6, over HTTP and both clients: one round, 20 requests, 3 faults."""
    words = "chaos --minutes 0 --requests 1 --round 20 --faults 3 --settings 1 --tokens 64 --seed 5"
    monkeypatch.setattr("sys.argv", [*words.split(), "--out", str(tmp_path / "out.json"), "--logs", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        chaos.main()
    figures = json.loads((tmp_path / "out.json").read_text())
    assert ended.value.code == 0, figures["faults"]
    assert figures["requests"] == 20 and figures["faults done"] > 0
