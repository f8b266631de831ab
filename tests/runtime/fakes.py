"""Engines of fake stages."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from expertflow.configs.schema import Config
from expertflow.errors import ExpertFlowError
from expertflow.runtime.engine.resources import Setup
from expertflow.runtime.engine.stages import StagePlan
from expertflow.runtime.engine.supervisor import Supervisor

SCRIPT = str(Path(__file__).with_name("fake_stage.py"))
STAGES = ("compute", "loader", "predictor", "scheduler")


def fake_engine(
    stages: tuple[str, ...] = STAGES, behaviour: dict[str, str] | None = None, **options: object
) -> Supervisor:
    """Not started yet. The first stage surveys. `behaviour`: stage -> $FAKE; `options` are the configuration's."""
    config = Config.load(**{"model": "nowhere", "kv_memory": "1MB", **options})
    return Supervisor(config, plans=fake_plans(stages, behaviour))


def fake_plans(stages: tuple[str, ...] = STAGES, behaviour: dict[str, str] | None = None) -> list[StagePlan]:
    how = behaviour or {}
    return [
        StagePlan(
            stage, ("-P", SCRIPT), {"FAKE": how.get(stage, "")}, memory("loader", stage), surveys=stage == stages[0]
        )
        for stage in stages
    ]


def memory(owner: str, stage: str) -> tuple[str, ...]:
    return ("slots", "host") if stage == owner else ()


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Poll for something that must come; the time only bounds a failure."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def heard(engine: Supervisor, stage: str, what: str) -> int | float:
    """The newest number that a fake stage published under this name; 0 before."""
    stats = engine.snapshot().stages.get(stage)
    return stats.counters.get(what, 0) if stats else 0


def fail_next_setup(monkeypatch: pytest.MonkeyPatch, engine: Supervisor, error: ExpertFlowError) -> None:
    """Let the next new setup of this engine not come up, when its stages have ended already."""
    make_room, errors = engine.resources.make_room, [error]

    def fail(setup: Setup) -> None:
        if errors:
            raise errors.pop()
        make_room(setup)

    monkeypatch.setattr(engine.resources, "make_room", fail)
