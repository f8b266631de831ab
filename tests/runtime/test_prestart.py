"""Processes that are started before it is known what they will be told; one of them surveys meanwhile."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from expertflow.configs.schema import Config
from expertflow.errors import CheckpointError, EngineError
from expertflow.ipc.messages import Progress
from expertflow.runtime.engine import resources
from expertflow.runtime.engine.stages import stage_plans
from expertflow.runtime.engine.supervisor import Supervisor
from expertflow.tests.runtime.fakes import fake_engine

PAIR = ("compute", "loader")


def early_ones() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if any("fake_stage" in word for word in child.cmdline())]


def test_all_are_started_before_the_survey_ends_and_work_afterwards():
    seen: list[int] = []

    def receive(progress: Progress) -> None:
        if progress.stage == "checkpoint":
            seen.extend(child.pid for child in early_ones() if child.pid not in seen)

    with told(receive) as engine:
        facts = engine.snapshot().facts
        assert sorted(seen) == sorted(facts[stage]["pid"] for stage in PAIR)


def test_progress_of_the_surveyor_is_passed_on():
    """A download that went unheard would be cut off after `start_timeout_s`."""
    heard: list[Progress] = []
    with told(heard.append, "download"):
        assert Progress("checkpoint", "downloading nowhere", 3, 7) in heard


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("refuse survey", CheckpointError, "nowhere: is broken. Mend it"),
        ("bug in survey", EngineError, "the surveyor ended by itself with exit code 1.*oh no"),
        ("file too short in survey", EngineError, "the surveyor ended by itself with exit code 1.*too short"),
        ("die in survey", EngineError, "the surveyor was killed with SIGKILL"),
    ],
)
def test_an_error_of_the_survey_keeps_its_type_and_leaves_no_process(how: str, kind: type[Exception], words: str):
    with pytest.raises(kind, match=f"(?s){words}"):
        fake_engine(PAIR, {"compute": how}).start()
    assert not early_ones()


def test_a_survey_that_takes_too_long_is_ended():
    with pytest.raises(EngineError, match="the survey took longer than 0.5 s"):
        fake_engine(PAIR, {"compute": "hang in survey"}, start_timeout_s=0.5).start()
    assert not early_ones()


def test_an_interrupted_survey_leaves_no_process():
    def interrupt(progress: Progress) -> None:
        if progress.what.startswith("downloading"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        told(interrupt, "download").start()
    assert not early_ones()


def test_one_that_died_untold_ends_the_start_with_the_cause(monkeypatch: pytest.MonkeyPatch):
    def kill_first(config: Config, survey: object, available: int) -> object:
        for child in early_ones():
            os.kill(child.pid, signal.SIGKILL)
        return plan(config, survey, available)  # pyright: ignore[reportArgumentType]

    plan = resources.plan_budgets
    monkeypatch.setattr(resources, "plan_budgets", kill_first)
    with pytest.raises(EngineError, match="stage .*: was killed"):
        fake_engine(PAIR).start()


def test_compute_alone_makes_the_survey():
    assert [plan.stage for plan in stage_plans(Config.load()) if plan.surveys] == ["compute"]


def told(receive: object, how: str = "") -> Supervisor:
    engine = fake_engine(PAIR, {"compute": how})
    engine._on_progress = receive  # pyright: ignore[reportAttributeAccessIssue]
    return engine
