"""Startup handshake: over a socket the supervisor asks for a survey or preparation, then sends the spec."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection
from threading import Lock

import msgspec

from ...configs.schema import Config
from ...errors import EngineError, ExpertFlowError
from ..messages import AskSurvey, ErrorFacts, Failed, Message, Prepare, Progress, Surveyed
from .logs import LogSpec


class SharedMemory(msgspec.Struct, frozen=True):
    """An `Arena` on its way to another process."""

    fd: int
    size_bytes: int


class StageSpec(Message, frozen=True, kw_only=True):
    """One start of one stage. Descriptors are numbers in the started process."""

    stage: str
    epoch: int
    run_dir: str
    config: Config
    survey_path: str
    slots: int = 0
    """Number of expert slots, in shared or in device memory."""
    memory: dict[str, SharedMemory] = {}
    """`slots` (device cpu): the slots, of the survey's stride. `host`: places of a stride each; with tier `host` all
    experts by layer, then expert."""
    host_filled: bool = False
    """Tier `host`: every expert lies in `host` already, or another engine's loader brings it there."""
    full_fd: int = -1
    """Eventfd of a store that several engines share; readable once the store is full."""
    log: LogSpec = LogSpec()
    """Destination of the stage's log."""
    supervisor_pid: int = 0
    death_fd: int = -1
    """The read end of a pipe that closes with the supervisor."""


StartupMessage = StageSpec | AskSurvey | Prepare
STARTUP_MESSAGE: msgspec.msgpack.Decoder[StartupMessage] = msgspec.msgpack.Decoder(StartupMessage)

Surveyor = Callable[[AskSurvey, Callable[[Progress], None]], msgspec.Struct]
"""Makes the requested survey; it may report progress from any thread."""

Preparation = Callable[[str], None]
"""Imports the modules that a stage needs for the model in this folder."""


class SupervisorGone(Exception):
    """The supervisor has closed the socket, or has ended."""


def refuse_survey(request: AskSurvey, report: Callable[[Progress], None]) -> msgspec.Struct:
    """Raise EngineError: the default for a stage that makes no survey."""
    raise EngineError("this stage makes no survey", request.model, "This is a bug")


def prepare_nothing(folder: str) -> None:
    """Do nothing: the default for a stage whose imports take no time."""


def await_spec(fd: int, survey: Surveyor, prepare: Preparation = prepare_nothing) -> StageSpec:
    """Answer survey requests with `survey` and preparation requests with `prepare`, then return the spec.

    Raises SupervisorGone, and the errors of `prepare` and `survey`; those of `survey` are sent to the supervisor first.
    """
    with Connection(fd) as connection:
        while True:
            match STARTUP_MESSAGE.decode(_receive(connection)):
                case AskSurvey() as request:
                    _answer(connection, request, survey)
                case Prepare(folder):
                    prepare(folder)
                case StageSpec() as spec:
                    return spec


def _answer(connection: Connection, request: AskSurvey, survey: Surveyor) -> None:
    lock = Lock()

    def send(message: Message) -> None:
        with lock:
            _send(connection, message)

    try:
        result = survey(request, send)
    except ExpertFlowError as error:
        send(Failed("checkpoint", ErrorFacts.of(error)))
        raise
    send(Surveyed(msgspec.Raw(msgspec.msgpack.encode(result))))


def _receive(connection: Connection) -> bytes:
    try:
        return connection.recv_bytes()
    except (EOFError, OSError) as error:
        raise SupervisorGone from error


def _send(connection: Connection, message: Message) -> None:
    try:
        connection.send_bytes(msgspec.msgpack.encode(message))
    except OSError as error:
        raise SupervisorGone from error
