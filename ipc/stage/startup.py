"""What a process of a stage is told before it is one: over a socket to the supervisor, which closes once the spec has
come."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection
from threading import Lock

import msgspec

from ...errors import EngineError, ExpertFlowError
from ..messages import AskSurvey, ErrorFacts, Failed, Message, Prepare, Progress, Surveyed
from .spec import STARTUP_MESSAGE, StageSpec

Surveyor = Callable[[AskSurvey, Callable[[Progress], None]], msgspec.Struct]
"""Makes the survey that it is asked for; it may report from any thread."""

Preparation = Callable[[str], None]
"""Imports what a stage needs for the model in this folder."""


class SupervisorGone(Exception):
    """It has closed the socket, or has ended."""


def no_surveyor(asked: AskSurvey, report: Callable[[Progress], None]) -> msgspec.Struct:
    """Of a stage that was asked by mistake."""
    raise EngineError("this stage makes no survey", asked.model, "This is a bug")


def nothing_to_prepare(folder: str) -> None:
    """Of a stage that imports in no time."""


def await_spec(fd: int, survey: Surveyor, prepare: Preparation = nothing_to_prepare) -> StageSpec:
    """Answer with `survey` if that is asked for, `prepare` if that is, then return the spec.

    Raises SupervisorGone, what `prepare` raises, and what `survey` raises; the supervisor hears of the last before.
    """
    with Connection(fd) as line:
        while True:
            match STARTUP_MESSAGE.decode(_receive(line)):
                case AskSurvey() as asked:
                    _answer(line, asked, survey)
                case Prepare(folder):
                    prepare(folder)
                case StageSpec() as spec:
                    return spec


def _answer(line: Connection, asked: AskSurvey, survey: Surveyor) -> None:
    one_at_a_time = Lock()

    def say(message: Message) -> None:
        with one_at_a_time:
            _send(line, message)

    try:
        made = survey(asked, say)
    except ExpertFlowError as error:
        say(Failed("checkpoint", ErrorFacts.of(error)))
        raise
    say(Surveyed(msgspec.Raw(msgspec.msgpack.encode(made))))


def _receive(line: Connection) -> bytes:
    try:
        return line.recv_bytes()
    except (EOFError, OSError) as error:
        raise SupervisorGone from error


def _send(line: Connection, message: Message) -> None:
    try:
        line.send_bytes(msgspec.msgpack.encode(message))
    except OSError as error:
        raise SupervisorGone from error
