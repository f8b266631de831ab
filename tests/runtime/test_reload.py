"""A running engine changes its configuration: the stages concerned start anew, or the old setup comes back."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from expertflow.configs.schema import Config
from expertflow.errors import BudgetError, EngineError, UsageError
from expertflow.ipc.messages import OrderEnded, ReloadEngine
from expertflow.ipc.shared.memory import Arena
from expertflow.ipc.transport.sockets import Context
from expertflow.runtime.engine.resources import CONFIGURATION
from expertflow.runtime.engine.supervisor import Supervisor
from expertflow.tests.runtime.fakes import fake_engine, heard, wait_until
from expertflow.tests.runtime.test_supervisor import watch

PAIR = ("compute", "loader")


def epochs(engine: Supervisor) -> dict[str, int]:
    return {stage: stats.epoch for stage, stats in engine.snapshot().stages.items()}


def settled(engine: Supervisor, **expected: int) -> bool:
    """Whether every stage has published in this epoch, and nothing is down."""
    snapshot = engine.snapshot()
    return epochs(engine) == expected and not snapshot.down


def stored(engine: Supervisor) -> Config:
    return msgspec.json.decode((Path(engine.address) / CONFIGURATION).read_bytes(), type=Config)


def test_only_the_stages_that_read_a_field_start_again_and_none_counts_as_dead() -> None:
    with fake_engine() as engine:
        engine.reload(policy="lru")
        wait_until(lambda: settled(engine, compute=1, loader=2, predictor=1, scheduler=1))
        wait_until(lambda: heard(engine, "compute", "loader said") == 2)
        assert set(engine.snapshot().restarts.values()) == {0} and not engine.snapshot().failures
        assert engine.config.policy == stored(engine).policy == "lru"
        engine.kill("loader")
        wait_until(lambda: engine.snapshot().restarts["loader"] == 1)


def test_other_slots_are_other_memory_for_both_that_use_them() -> None:
    with fake_engine(expert_memory="25%") as engine:
        assert engine.resources.budgets.slots == 8
        engine.reload(expert_memory="50%")
        wait_until(lambda: settled(engine, compute=2, loader=2, predictor=1, scheduler=1))
        assert engine.resources.budgets.slots == 16
        assert engine.resources.arenas["slots"].size_bytes == os.fstat(engine.resources.arenas["slots"].fd).st_size
        assert engine.resources.arenas["slots"].size_bytes == 16 * 4096


REFUSED: list[tuple[dict[str, str], type[Exception], str]] = [
    ({"expert_memory": "1B"}, BudgetError, "holds no expert: one of the 32 takes 4.1 kB"),
    ({"dtype": "float32"}, UsageError, "dtype: cannot be changed while the engine runs"),
    ({"policy": "best"}, UsageError, "policy"),
    ({"polisy": "lru"}, UsageError, "is no option: 'polisy'"),
    ({}, UsageError, "nothing to change"),
    ({"predictor": "path", "predictor_file": "/nowhere/p.npz"}, UsageError, "does not exist"),
]


def test_what_cannot_be_is_refused_and_nothing_has_changed() -> None:
    with fake_engine(PAIR) as engine:
        before = stored(engine)
        for changes, kind, words in REFUSED:
            with pytest.raises(kind, match=words):
                engine.reload(**changes)
        assert stored(engine) == before and engine.resources.budgets.slots == 8
        wait_until(lambda: settled(engine, compute=1, loader=1))


def test_a_setup_that_does_not_come_up_gives_way_to_the_old_one() -> None:
    """The second loader dies at its start; the third one belongs to the old setup and is left alone."""
    with fake_engine(PAIR, {"loader": "die once"}, expert_memory="25%") as engine:
        with pytest.raises(EngineError, match="SIGKILL"):
            engine.reload(expert_memory="50%")
        wait_until(lambda: settled(engine, compute=3, loader=3))
        assert engine.resources.budgets.slots == 8 and stored(engine).expert_memory == "25%"
        assert engine.resources.arenas["slots"].size_bytes == 8 * 4096
        assert engine.failure is None


def test_memory_that_goes_away_meanwhile_brings_the_old_slots_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_engine(PAIR, expert_memory="25%") as engine:
        allocate, tried = Arena.allocate, []

        def fail_once(arena: Arena, size_bytes: int) -> None:
            tried.append(size_bytes)
            if len(tried) == 1:
                raise BudgetError("needs 1 GB, and only 1 MB is available", "shared memory 'slots'")
            allocate(arena, size_bytes)

        monkeypatch.setattr(Arena, "allocate", fail_once)
        with pytest.raises(BudgetError, match="needs 1 GB"):
            engine.reload(expert_memory="50%")
        wait_until(lambda: settled(engine, compute=2, loader=2))
        assert tried == [16 * 4096, 8 * 4096] and engine.resources.budgets.slots == 8


def test_a_watcher_may_reload_and_hears_the_end(context: Context) -> None:
    with fake_engine(PAIR) as engine, closing(watch(context, engine.address)) as watcher:
        for changes, code in [({"policy": "lru"}, None), ({"model": "other"}, "usage")]:
            watcher.send(ReloadEngine(changes))
            assert watcher.socket.poll(30_000), "no answer"
            answer = watcher.receive()[-1]
            assert isinstance(answer, OrderEnded)
            assert (answer.error and answer.error.code) == code
        assert engine.resources.config.policy == "lru"


def test_an_engine_that_stops_meanwhile_answers() -> None:
    with fake_engine(PAIR, {"loader": "slow again"}) as engine:
        engine.begin_to_stop()
        with pytest.raises(EngineError):
            engine.reload(policy="lru")
