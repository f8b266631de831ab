"""What makes an engine slower with a model is said where it is planned, served and verified, with the reason."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from expertflow.configs.schema import Config
from expertflow.ipc.messages import Snapshot
from expertflow.runtime.commands import serve
from expertflow.runtime.commands.plan import Plan
from expertflow.runtime.engine.starting import engine_remarks
from expertflow.runtime.engine.supervisor import Supervisor
from expertflow.runtime.plan import proposal
from expertflow.runtime.plan.fit import model_needs
from expertflow.tests.runtime.fake_survey import fake_survey
from expertflow.workers.checkpoint.survey import RowFacts, Survey

PADDING = "Slower: sequences of different lengths do not share a batch (its windows are compressed)"
MOVING = "Slower: sequences do not join a running batch (its windows are compressed)"
NOTE = "it runs as another"


def survey_with(padding: bool = True, moving: bool = True, notes: tuple[str, ...] = ()) -> Survey:
    rows = RowFacts(
        padding=padding, moving=moving, reason="its windows are compressed", kv_bytes_per_position=16
    )  # fmt: skip
    return msgspec.structs.replace(fake_survey(), rows=rows, notes=list(notes))


@pytest.mark.parametrize(
    ("survey", "said"),
    [
        (survey_with(), []),
        (survey_with(padding=False), [PADDING]),
        (survey_with(moving=False), [MOVING]),
        (survey_with(padding=False, moving=False, notes=(NOTE,)), [NOTE, PADDING, MOVING]),
    ],
)
def test_each_limit_has_its_sentence(survey: Survey, said: list[str]):
    assert survey.remarks == said
    assert model_needs(survey).remarks == said


def test_plan_prints_the_remarks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(proposal, "run_sizes", lambda config, path: survey_with(padding=False, notes=(NOTE,)))
    engine = Config.load(model="m", kv_memory="1MB")
    assert Plan(engine=engine, memory_only=True).run() == 0
    lines = capsys.readouterr().out.splitlines()
    assert NOTE in lines and PADDING in lines
    Plan(engine=engine, memory_only=True, json=True).run()
    assert msgspec.json.decode(capsys.readouterr().out)["model"]["remarks"] == [NOTE, PADDING]


def engine_with(survey: Survey) -> Supervisor:
    """As far as commands look at one: compute has told its facts."""
    facts: dict[str, Any] = {"compute": {"remarks": "\n".join(survey.remarks)}}
    snapshot = Snapshot(time_ns=0, stages={}, pss_bytes={}, restarts={}, facts=facts)
    fake = SimpleNamespace(snapshot=lambda: snapshot, config=Config.load(model="m"), address="/run/x", choice="")
    return cast(Supervisor, fake)


def test_serve_prints_the_remarks(capsys: pytest.CaptureFixture[str]):
    serve._print_addresses(engine_with(survey_with(padding=False, moving=False)), None, None, None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Ready: m" and lines[1:3] == [PADDING, MOVING]


def test_an_engine_without_limits_is_silent():
    assert engine_remarks(engine_with(survey_with())) == []
