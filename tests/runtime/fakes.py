"""Engines of fake stages, and a survey of no real checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from expertflow.configs.schema import Config
from expertflow.runtime.stages import StagePlan
from expertflow.runtime.supervisor import Supervisor
from expertflow.workers.checkpoint.survey import RowFacts, Survey

SCRIPT = str(Path(__file__).with_name("fake_stage.py"))
STAGES = ("compute", "loader", "predictor", "scheduler")


def fake_survey(layers: int = 4, experts: int = 8, stride_bytes: int = 4096, skeleton_bytes: int = 1000) -> Survey:
    return Survey(
        folder="nowhere",
        model_type="fake",
        architecture="Fake",
        dtype="float32",
        vocabulary=10,
        context=100,
        eos_ids=[],
        layers=layers,
        experts=experts,
        top_k=2,
        module_names=[f"layers.{layer}" for layer in range(layers)],
        skeleton_bytes=skeleton_bytes,
        checkpoint_bytes=layers * experts * stride_bytes,
        rows=RowFacts(kv_bytes_per_position=16),
        files=[],
        tensors=[],
        pieces=[],
        places=np.zeros(0, np.int64).tobytes(),
        stride_bytes=stride_bytes,
        block_bytes=1,
    )


def fake_engine(
    stages: tuple[str, ...] = STAGES, behaviour: dict[str, str] | None = None, **options: object
) -> Supervisor:
    """Not started yet. `behaviour`: stage -> $FAKE; `options` are the configuration's."""
    how = behaviour or {}
    plans = [
        StagePlan(
            stage, ("-P", SCRIPT), {"FAKE": how.get(stage, "")}, memory("loader", stage), early=stage == "compute"
        )
        for stage in stages
    ]
    config = Config.load(**{"model": "nowhere", "kv_memory": "1MB", **options})
    return Supervisor(config, plans=plans, surveyor=lambda config, path, report: fake_survey())


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
