"""What a process of a stage is told: perhaps to survey the checkpoint, then which start of the stage it is."""

from __future__ import annotations

import msgspec

from ...configs.schema import Config
from ..messages import AskSurvey, Message, Prepare


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
    """Expert slots there are, wherever."""
    memory: dict[str, SharedMemory] = {}
    """`slots` (device cpu): the slots, of the survey's stride. `host`: places of a stride each; of tier host all
    experts by layer, then expert."""
    host_filled: bool = False
    """Of tier host: every expert lies in `host` already, or another engine's loader brings it there."""
    full_fd: int = -1
    """Of a store that several engines share: an eventfd that can be read from once it is full."""
    supervisor_pid: int = 0
    death_fd: int = -1
    """The read end of a pipe that closes with the supervisor."""


StartupMessage = StageSpec | AskSurvey | Prepare
STARTUP_MESSAGE: msgspec.msgpack.Decoder[StartupMessage] = msgspec.msgpack.Decoder(StartupMessage)
