"""A stage that is started before it is known what it will be told."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from expertflow.configs.schema import Config
from expertflow.errors import CheckpointError, EngineError
from expertflow.runtime.stages import stage_plans
from expertflow.runtime.supervisor import Supervisor
from expertflow.tests.runtime.fakes import fake_engine, fake_survey

PAIR = ("compute", "loader")


def early_ones() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if any("fake_stage" in word for word in child.cmdline())]


def test_it_is_started_before_the_survey_ends_and_works_afterwards():
    seen: list[int] = []

    def survey(*_: object) -> object:
        seen.extend(child.pid for child in early_ones())
        return fake_survey()

    with surveyed_by(survey) as engine:
        assert seen == [engine.snapshot().facts["compute"]["pid"]]


def test_a_checkpoint_that_is_refused_leaves_no_process():
    def survey(*_: object) -> object:
        assert early_ones()
        raise CheckpointError("is broken", "here", "Mend it")

    with pytest.raises(CheckpointError, match="is broken"):
        surveyed_by(survey).start()
    assert not early_ones()


def test_one_that_died_untold_ends_the_start_with_the_cause():
    def survey(*_: object) -> object:
        for child in early_ones():
            os.kill(child.pid, signal.SIGKILL)
        return fake_survey()

    with pytest.raises(EngineError, match="stage compute: was killed"):
        surveyed_by(survey).start()


def test_only_compute_has_that_much_to_import():
    assert [plan.stage for plan in stage_plans(Config.load()) if plan.early] == ["compute"]


def surveyed_by(survey: object) -> Supervisor:
    engine = fake_engine(PAIR)
    engine._surveyor = survey  # pyright: ignore[reportAttributeAccessIssue]
    return engine
