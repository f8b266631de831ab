"""What a stage is told when it is started."""

from __future__ import annotations

import os
import stat

import msgspec

from ..configs.schema import Config


class SharedMemory(msgspec.Struct, frozen=True):
    """An `Arena` on its way to another process."""

    fd: int
    size_bytes: int


class StageSpec(msgspec.Struct, frozen=True, kw_only=True):
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
    supervisor_pid: int = 0
    death_fd: int = -1
    """The read end of a pipe that closes with the supervisor."""


def write_spec(spec: StageSpec) -> int:
    """A descriptor from which `read_spec` reads; the caller passes it on and closes it."""
    fd = os.memfd_create("spec", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(msgspec.msgpack.encode(spec))
    return fd


def read_spec(fd: int) -> StageSpec:
    """Read and close; from a pipe, wait for it. Raises EOFError if the pipe ends without a spec."""
    with open(fd, "rb") as file:
        if file.seekable():
            file.seek(0)
        raw = file.read()
    if not raw:
        raise EOFError("nobody said what to do")
    return msgspec.msgpack.decode(raw, type=StageSpec)


def is_awaited(fd: int) -> bool:
    """Whether the spec is still to come, through a pipe."""
    return stat.S_ISFIFO(os.fstat(fd).st_mode)
