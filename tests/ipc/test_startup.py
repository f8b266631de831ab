"""What a process is told before it is a stage, and what it answers; the test is its supervisor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import msgspec
import pytest
from expertflow.configs.schema import Config
from expertflow.errors import CheckpointError
from expertflow.ipc.messages import AskSurvey, ErrorFacts, Failed, Message, Prepare, Progress, Surveyed
from expertflow.ipc.messages.control import FROM_SURVEYOR
from expertflow.ipc.stage.startup import SharedMemory, StageSpec, SupervisorGone, await_spec, refuse_survey

SPEC = StageSpec(
    stage="loader",
    epoch=1,
    run_dir="/r",
    config=Config(model="m", batch_size=3),
    survey_path="/s",
    memory={"slots": SharedMemory(5, 4096)},
)
ASKED = AskSurvey("m", "main", "auto")
HALF = Progress("checkpoint", "downloading m", 1, 2)


@pytest.fixture
def lines() -> Iterator[tuple[Connection, int]]:
    """The supervisor's end, and the descriptor that the stage gets (and closes)."""
    ours, theirs = Pipe()
    with ours, theirs:
        yield ours, os.dup(theirs.fileno())


def say(line: Connection, *messages: Message) -> None:
    for message in messages:
        line.send_bytes(msgspec.msgpack.encode(message))


def survey(asked: AskSurvey, report: Callable[[Progress], None]) -> msgspec.Struct:
    report(HALF)
    return asked


def refuse(asked: AskSurvey, report: Callable[[Progress], None]) -> msgspec.Struct:
    raise CheckpointError("is broken", asked.model, "Mend it")


def test_a_spec_alone_is_all_a_restart_is_told(lines: tuple[Connection, int]):
    say(lines[0], SPEC)
    assert await_spec(lines[1], refuse_survey) == SPEC


def test_a_survey_is_answered_before_the_spec(lines: tuple[Connection, int]):
    line, fd = lines
    say(line, ASKED, SPEC)
    assert await_spec(fd, survey) == SPEC
    assert FROM_SURVEYOR.decode(line.recv_bytes()) == HALF
    answer = FROM_SURVEYOR.decode(line.recv_bytes())
    assert isinstance(answer, Surveyed)
    assert msgspec.msgpack.decode(answer.survey, type=AskSurvey) == ASKED


def test_a_spare_prepares_before_its_spec_comes(lines: tuple[Connection, int]):
    prepared: list[str] = []
    say(lines[0], Prepare("/folder"), SPEC)
    assert await_spec(lines[1], refuse_survey, prepared.append) == SPEC
    assert prepared == ["/folder"]


def test_a_refusal_is_told_with_its_type(lines: tuple[Connection, int]):
    line, fd = lines
    say(line, ASKED)
    with pytest.raises(CheckpointError, match="is broken"):
        await_spec(fd, refuse)
    facts = ErrorFacts("checkpoint", "is broken", "m", "Mend it")
    assert FROM_SURVEYOR.decode(line.recv_bytes()) == Failed("checkpoint", facts)


@pytest.mark.parametrize("asked", [[], [ASKED]])
def test_a_supervisor_that_gives_up_ends_the_wait(lines: tuple[Connection, int], asked: list[Message]):
    """While the survey is made too: what it says then finds nobody."""
    ours, theirs = Pipe()
    say(ours, *asked)
    fd = os.dup(theirs.fileno())
    theirs.close()
    ours.close()
    with pytest.raises(SupervisorGone):
        await_spec(fd, survey)
