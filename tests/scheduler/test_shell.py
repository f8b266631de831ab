"""The scheduler's shell: what it publishes, and clients that vanish without a word."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgpack
import zmq
from expertflow.configs.schema import Config
from expertflow.runtime.client import Client
from expertflow.tests.scheduler.fake_engine import FakeEngine


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert what()


def test_it_publishes_counters_and_the_spans_of_steps(tmp_path: Path) -> None:
    """`top` and the timeline show nothing else of it."""
    config = Config(kv_memory="100KB", timeline=str(tmp_path / "timeline.json"))
    with FakeEngine(tmp_path, config) as engine, Client(engine.address) as client:
        client.generate([[1], [2, 3]], max_new_tokens=5, eos_ids=[])
        engine.kill_scheduler(silent=False)
        wait_for(lambda: any(published.stats.done == 2 for published in engine.published))
    last = engine.published[-1].stats
    assert (last.stage, last.done, last.queue) == ("scheduler", 2, 0)
    assert last.counters["tokens"] == 10 and last.counters["kv_reserved_bytes"] == 0
    spans = [span for published in engine.published for span in published.spans]
    assert {span.name for span in spans} == {"prefill", "decode"}
    assert len(spans) == last.counters["steps"]
    assert all(span.start_ns < span.end_ns for span in spans)


def test_a_client_that_vanishes_frees_its_rows(tmp_path: Path) -> None:
    """Killed, it cannot cancel: its work must stop with the first answer nobody takes, and others get their turn."""
    config = Config(kv_memory="100KB", batch_size=1, queue_limit=50)
    with FakeEngine(tmp_path, config) as engine:
        engine.paused.set()
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.connect(f"ipc://{engine.address}/clients")
        for i in range(40):
            submit = {"type": "Submit", "request_id": str(i), "prompt_ids": [i], "max_new_tokens": 60, "eos_ids": []}
            socket.send(msgpack.packb(submit) or b"")
        for _ in range(40):
            assert socket.poll(10_000)
            socket.recv()
        context.destroy(linger=0)
        engine.paused.clear()
        with Client(engine.address) as client:
            done = client.generate([[1]], max_new_tokens=3, eos_ids=[])
        assert len(done[0].token_ids) == 3
        assert len(engine.computes[-1].ran) < 800, "of 2,400 steps; when the system reports the end is its own affair"


def test_an_idle_scheduler_sleeps(tmp_path: Path) -> None:
    """A past deadline or a head that does not fit must not turn the loop into a spin (counted, not timed)."""
    config = Config(kv_memory="1000B", batch_size=4)
    with FakeEngine(tmp_path, config) as engine, Client(engine.address) as client:
        engine.paused.set()
        batch = client.submit([[1] * 40] * 4, max_new_tokens=5, deadline_s=100)
        assert engine.shell is not None
        wait_for(lambda: engine.shell is not None and engine.shell._state.statistics().steps_in_flight == 1)
        ticks = 0
        tick = engine.shell._state._tick

        def counted(now_ns: int) -> list:
            nonlocal ticks
            ticks += 1
            return tick(now_ns)

        engine.shell._state._tick = counted
        time.sleep(0.3)
        assert ticks < 10
        engine.paused.clear()
        assert len(batch.results(timeout_s=20)) == 4
