"""The life-cycle of an engine, with real processes that are small."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import closing
from pathlib import Path

import msgspec
import psutil
import pytest
import zmq
from expertflow.configs.schema import Config
from expertflow.errors import BudgetError, EngineError, UsageError
from expertflow.ipc.messages import Activity, AskActivity, AskSnapshot, KillStage, Progress, Snapshot
from expertflow.ipc.messages.control import TO_WATCHER, ToWatcher
from expertflow.ipc.transport.addresses import MONITOR, socket_address
from expertflow.ipc.transport.link import Link
from expertflow.ipc.transport.sockets import Context, Socket
from expertflow.runtime.engine import engine as engine_module
from expertflow.runtime.engine.children import Child
from expertflow.runtime.engine.engine import Engine
from expertflow.runtime.engine.supervisor import Supervisor
from expertflow.tests.runtime.fakes import STAGES, fake_engine, heard, wait_until

PAIR = ("compute", "loader")


def pid_of(engine: Supervisor, stage: str) -> int:
    return int(engine.snapshot().facts[stage]["pid"])


def test_every_pair_of_stages_talks():
    """A missing link, or one that opens on one side only, would leave a stage deaf for ever."""
    with fake_engine() as engine:
        for stage, peer in [
            ("scheduler", "compute"), ("predictor", "scheduler"), ("predictor", "loader"), ("loader", "predictor"),
            ("loader", "compute"), ("compute", "loader"), ("compute", "scheduler"),
        ]:  # fmt: skip
            wait_until(lambda stage=stage, peer=peer: heard(engine, stage, f"{peer} said") == 1)
        assert set(engine.snapshot().stages) == set(STAGES)
        wait_until(lambda: all(engine.snapshot().pss_bytes[name] > 0 for name in (*STAGES, "supervisor")))
    assert not os.path.exists(engine.address)


@pytest.mark.parametrize("name", ["record", "trace"])
def test_a_folder_to_write_into_that_is_a_file_is_refused_before_anything_starts(
    name: str, tmp_path: Path, no_process: None
):
    (tmp_path / "file").write_text("")
    (tmp_path / "config.json").write_text("{}")
    config = Config.load(model=tmp_path, **{name: str(tmp_path / "file")})
    with pytest.raises(UsageError, match="cannot be made") as refused:
        Supervisor(config).start()
    assert refused.value.where == str(tmp_path / "file")


@pytest.mark.parametrize("victim", PAIR)
def test_a_killed_stage_comes_back_and_is_heard_again(victim: str):
    """R8: the survivor must open a fresh link to the new epoch; an old one would swallow all it says."""
    other = PAIR[1 - PAIR.index(victim)]
    with fake_engine(PAIR) as engine:
        for epoch in (1, 2, 3):
            wait_until(lambda epoch=epoch: heard(engine, other, f"{victim} said") == epoch)
            wait_until(lambda: heard(engine, victim, f"{other} said") == 1)
            engine.kill(victim)
        wait_until(lambda: heard(engine, other, f"{victim} joined") == 4)
        assert engine.snapshot().restarts == {victim: 3, other: 0}
        names = sorted(entry.name for entry in Path(engine.address).iterdir())
        assert not [name for name in names if f"{victim}.1" in name], "what the killed left is not cleared away"


def test_a_storm_of_deaths_ends_the_engine_with_the_first_cause():
    """Without the limit a stage that cannot live would be restarted for ever; without the cause nobody knows why."""
    with fake_engine(PAIR, {"loader": "die again"}, restart_limit=2) as engine:
        engine.kill("loader")
        with pytest.raises(EngineError, match="died 3 times within a minute; the first time: stage loader: was killed"):
            engine.wait(timeout_s=60)
        assert not os.path.exists(engine.address), "an engine that ended by itself leaves its directory"


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("die", EngineError, "SIGKILL"),
        ("exit", EngineError, "exit code 7.*\n.*the last straw"),
        ("refuse", BudgetError, "KV caches: needs 9 GB, has 1 GB. Lower kv_memory"),
        ("bug", EngineError, "ValueError: an unexpected thing"),
    ],
)
def test_a_stage_that_cannot_start_says_why(how: str, kind: type[Exception], words: str):
    """A death before Ready must be an error with its cause, not a wait; typed errors keep their type."""
    engine = fake_engine(PAIR, {"loader": how})
    with pytest.raises(kind, match=words):
        engine.start()
    assert not os.path.exists(engine.address)


def test_words_that_come_after_the_death_are_still_heard(monkeypatch: pytest.MonkeyPatch):
    """The kernel reports a death before ZeroMQ delivers what was said: "exit code 3" would be all the user sees."""
    receive, reap = Engine._receive_from_stages, Child.reap
    reaped: list[Child] = []
    monkeypatch.setattr(Child, "reap", lambda child: reaped.append(child) or reap(child))
    monkeypatch.setattr(Engine, "_receive_from_stages", lambda engine: receive(engine) if reaped else None)
    with pytest.raises(BudgetError, match="needs 9 GB"):
        fake_engine(PAIR, {"loader": "refuse"}).start()


def test_a_stage_that_never_becomes_ready_is_late_not_awaited():
    engine = fake_engine(PAIR, {"loader": "hang"}, start_timeout_s=2)
    with pytest.raises(EngineError, match="was not ready after 2 s"):
        engine.start()


def test_a_deaf_stage_is_killed_in_the_end(monkeypatch: pytest.MonkeyPatch):
    """It neither drains nor obeys SIGTERM: without the ladder's last step stop() would leave it."""
    monkeypatch.setattr(engine_module, "GENTLE", engine_module.StopTimes(0.2, 0.2, 5.0))
    with fake_engine(PAIR, {"loader": "deaf"}) as engine:
        pid = pid_of(engine, "loader")
    assert not psutil.pid_exists(pid)


def test_ctrl_c_reaches_the_supervisor_alone():
    """Ctrl-C goes to the whole foreground group: stages in it would die under a supervisor that wants to drain them."""
    with fake_engine(PAIR) as engine:
        assert os.getpgid(pid_of(engine, "compute")) != os.getpgrp()
        os.kill(pid_of(engine, "compute"), signal.SIGINT)
        before = engine.snapshot().stages.get("compute")
        wait_until(lambda: (now := engine.snapshot().stages.get("compute")) is not None and now != before)
        assert engine.snapshot().restarts["compute"] == 0


def test_an_interrupt_while_starting_leaves_nothing():
    """The leak fixture looks: a half-started engine must be taken down when the caller is interrupted."""
    engine = fake_engine(PAIR, {"loader": "progress", "compute": "hang"})

    def interrupt(progress: Progress) -> None:
        if progress.stage == "loader":
            raise KeyboardInterrupt

    engine._on_progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        engine.start()


def test_a_watcher_sees_the_snapshot_and_may_kill(context: Context):
    """`expertflow top` and `demo --kill` talk to this socket."""
    with fake_engine(PAIR) as engine, closing(watch(context, engine.address)) as watcher:
        watcher.send(KillStage("loader"))
        restarts = 0
        while restarts < 1:
            watcher.send(AskSnapshot())
            assert watcher.socket.poll(10_000), "no answer"
            answers = [answer for answer in watcher.receive() if isinstance(answer, Snapshot)]
            restarts = max([0, *(answer.restarts["loader"] for answer in answers)])


def watch(context: Context, address: str) -> Link[ToWatcher]:
    return Link.connect(context, socket_address(address, MONITOR), TO_WATCHER)


def test_garbage_on_the_supervisors_sockets_harms_nobody(context: Context):
    """Whoever can open the sockets can write anything there; a poisoned message must not end an engine."""
    with fake_engine(PAIR) as engine:
        wait_until(lambda: heard(engine, "compute", "loader said") == 1)
        sockets = [entry.name for entry in Path(engine.address).iterdir() if entry.is_socket()]
        assert len(sockets) == 3, "control, monitor and the pair's"
        strangers = [garble(context, socket_address(engine.address, name)) for name in sockets]
        stamp = time.monotonic_ns()
        for stage in PAIR:
            wait_until(lambda stage=stage: engine.snapshot().stages[stage].time_ns > stamp)
        engine.kill("compute")
        wait_until(lambda: heard(engine, "loader", "compute said") == 2)
        assert heard(engine, "loader", "rejected") >= 4, "the pair's socket heard no garbage: the test is vacuous"
        assert engine.snapshot().restarts == {"compute": 1, "loader": 0}
    for stranger in strangers:
        stranger.close(linger=0)


def garble(context: Context, address: str) -> Socket:
    """A stranger who has sent all kinds of things to this socket."""
    stranger = context.socket(zmq.DEALER)
    stranger.connect(address)
    for frames in ([b"\xff\x00garbage"], [b""], [b"a", b"b"], [msgspec.msgpack.encode({"type": "Drain"})]):
        stranger.send_multipart(frames)
    return stranger


def test_the_timeline_is_valid_json_with_a_process_a_stage(tmp_path: Path):
    file = tmp_path / "trace.json"
    with fake_engine(PAIR, timeline=str(file)) as engine:
        wait_until(lambda: heard(engine, "compute", "loader said") == 1)
    events = json.loads(file.read_text())
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} == set(PAIR)
    spans = [event for event in events if event["ph"] == "X"]
    assert {span["pid"] for span in spans} == {1, 2}
    assert all(span["dur"] >= 0 and span["tid"] == 1 for span in spans)


def test_what_cannot_run_is_refused_before_anything_starts(tmp_path: Path):
    """I5: with the numbers, and with nothing left behind."""
    with pytest.raises(BudgetError, match="holds no expert: one of the 32 takes 4.1 kB"):
        fake_engine(PAIR, expert_memory="4000B").start()
    with pytest.raises(BudgetError, match="only .* is available"):
        fake_engine(PAIR, kv_memory="1000000GB").start()
    with pytest.raises(UsageError, match="cannot be written"):
        fake_engine(PAIR, timeline=str(tmp_path)).start()
    with pytest.raises(UsageError, match="no model given"):
        fake_engine(PAIR, model="").start()


def test_an_engine_can_be_started_again_and_stopped_twice():
    engine = fake_engine(PAIR)
    for _ in range(2):
        engine.start()
        with pytest.raises(EngineError, match="running already"):
            engine.start()
        engine.stop()
        engine.stop()
    assert engine.wait(0)


def test_stages_report_only_while_somebody_asks(context: Context):
    """I7: a stage is told when watching begins, also one that is restarted meanwhile, and when nobody asks any more."""
    with fake_engine(PAIR) as engine, closing(watch(context, engine.address)) as watcher:
        wait_until(lambda: heard(engine, "compute", "loader said") == 1)
        assert published_spans(watcher) == set()
        wait_until(lambda: published_spans(watcher) == set(PAIR))
        engine.kill("loader")
        wait_until(lambda: engine.snapshot().restarts["loader"] == 1 and not engine.snapshot().down)
        before = newest_spans(watcher)
        wait_until(lambda: "loader" in {spans.stage for spans in ask(watcher, before).spans})


def ask(watcher: Link[ToWatcher], after: int = -1) -> Activity:
    watcher.send(AskActivity(after))
    assert watcher.socket.poll(10_000), "no answer"
    answers = watcher.receive()
    assert isinstance(answers[-1], Activity)
    return answers[-1]


def published_spans(watcher: Link[ToWatcher]) -> set[str]:
    return {spans.stage for spans in ask(watcher).spans}


def newest_spans(watcher: Link[ToWatcher]) -> int:
    return ask(watcher).spans[-1].number
