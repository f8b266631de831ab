"""A command that waits behind the requests of other clients says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from expertflow.errors import EngineError
from expertflow.ipc.messages import Snapshot
from expertflow.ipc.messages.control import StageStats
from expertflow.runtime.client import Client
from expertflow.runtime.commands.generate import Generate
from expertflow.runtime.monitor import request_progress
from expertflow.runtime.monitor.request_progress import count_requests, show_batch
from expertflow.tests.runtime.test_added_tokens import save_tokenizer
from expertflow.tests.scheduler.fake_engine import FakeEngine

NOTICE = "waits for its turn: the engine has 3 requests of other clients"


def snapshot_of(*stats: StageStats) -> Snapshot:
    stages = {stage.stage: stage for stage in stats}
    return Snapshot(time_ns=0, stages=stages, pss_bytes={}, restarts={}, facts={})


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    """An engine whose compute stands still until a client has seen four requests in the scheduler's statistics."""
    save_tokenizer(tmp_path, {})
    with FakeEngine(tmp_path, vocabulary=257) as engine:

        def stats(self: Client, timeout_s: float = 5.0) -> Snapshot:
            snapshot = snapshot_of(*(message.stats for message in engine.published[-1:]))
            if count_requests(snapshot) >= 4:
                engine.paused.clear()
            return snapshot

        monkeypatch.setattr(Client, "stats", stats)
        monkeypatch.setattr(request_progress, "CHECK_S", 0.05)
        engine.paused.set()
        yield engine


@pytest.mark.parametrize("count", [1, 2])
def test_generate_says_that_it_waits(count: int, engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """Two tokens waited more than a minute behind another client, and nothing was said."""
    with Client(engine.address) as other:
        other.submit([[1]] * (4 - count), max_new_tokens=2)
        prompts = ["ab", "c"][:count]
        assert Generate(prompt=prompts, address=engine.address, max_new_tokens=2).run() == 0
    notice = NOTICE if count == 1 else NOTICE.replace("3", "2")
    printed = capsys.readouterr()
    assert f"generate: {notice}" in printed.err and notice not in printed.out


def test_trace_and_verify_say_it_too(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(engine.address) as other, Client(engine.address) as client:
        other.submit([[1]] * 3, max_new_tokens=2)
        batch = client.submit([[5]], max_new_tokens=2)
        show_batch(client, batch, "verify")
        assert batch.done
    assert f"verify: {NOTICE}" in capsys.readouterr().err


def test_without_other_clients_nothing_is_said(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """A first token that takes long on an idle engine is no queue."""
    with Client(engine.address) as client:
        batch = client.submit([[5]] * 4, max_new_tokens=1)
        show_batch(client, batch, "trace")
        assert batch.done
    assert "turn" not in capsys.readouterr().err


def test_an_engine_that_gives_no_statistics_is_waited_for(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[float] = []

    def silent(self: Client, timeout_s: float = 5.0) -> Snapshot:
        asked.append(timeout_s)
        if len(asked) == 2:
            engine.paused.clear()
        raise EngineError("gave no snapshot", "somewhere")

    monkeypatch.setattr(Client, "stats", silent)
    with Client(engine.address) as client:
        batch = client.submit([[5]], max_new_tokens=1)
        show_batch(client, batch, "trace")
        assert batch.done and len(asked) == 2
    assert "turn" not in capsys.readouterr().err


def test_requests_of_all_engines_of_a_group_count() -> None:
    names = {"cuda:0/scheduler": (3, 2), "cuda:1/scheduler": (0, 4), "cuda:1/loader": (50, 0)}
    stats = [
        StageStats(stage=name, pid=1, epoch=1, time_ns=0, queue=queue, counters={"running": running})
        for name, (queue, running) in names.items()
    ]
    assert count_requests(snapshot_of(*stats)) == 9
