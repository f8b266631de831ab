"""A target of fuzzing: bytes go into one reader of ours, and nothing but a typed refusal may come out."""

from __future__ import annotations

import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from expertflow.errors import ExpertFlowError
from expertflow.tests.fuzz.mutations import Form

Read = Callable[[bytes], object]
ROOT = Path(__file__).resolve().parents[2]
SLOW_S = 2.0
"""Seconds of processor time that one input may take. A usual one takes microseconds to a few milliseconds."""


class Target(NamedTuple):
    """A reader. `prepare` gets an empty folder and returns the function that is called with each input."""

    name: str
    prepare: Callable[[Path], Read]
    seeds: Callable[[], list[bytes]]
    """Inputs that the reader takes; others are made of them."""
    refusals: tuple[type[Exception], ...] = (ExpertFlowError,)
    """Errors by which the reader refuses an input."""
    form: Form = "bytes"
    kept: int = 0
    """Bytes at the begin of an input that choose what follows, which is in `form`."""


@contextmanager
def opened(target: Target, folder: Path) -> Iterator[Read]:
    """Yield the function that reads inputs of a target; end afterwards what it keeps open."""
    read = target.prepare(folder)
    try:
        yield read
    finally:
        if isinstance(read, ClosingRead):
            read.close()


class ClosingRead:
    """A function that reads inputs and keeps something open, which `close` ends."""

    def __init__(self, read: Read, close: Callable[[], None]) -> None:
        self._read, self.close = read, close

    def __call__(self, data: bytes) -> object:
        return self._read(data)


class Fault(NamedTuple):
    """Kind and place of what went wrong, to tell one fault from another, and the end of the traceback."""

    kind: str
    place: str
    details: str


def try_input(read: Read, refusals: tuple[type[Exception], ...], data: bytes) -> Fault | None:
    """Return the fault that an input shows: another error than a refusal, or too much time. None: there is none."""
    begun_s = time.process_time()
    try:
        read(data)
    except refusals:
        pass
    except BaseException as error:  # noqa: BLE001 - whatever comes out is a finding
        if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
            raise
        return _fault_of(error)
    took_s = time.process_time() - begun_s
    return Fault("slow", "", f"took {took_s:.1f} s") if took_s > SLOW_S else None


def _fault_of(error: BaseException) -> Fault:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_ours(frame.filename)]
    place = f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else "?"
    return Fault(type(error).__name__, place, "".join(traceback.format_exception(error, limit=-8))[-3000:])


def _is_ours(name: str) -> bool:
    path = Path(name)
    return path.is_relative_to(ROOT) and ".venv" not in path.parts and "fuzz" not in path.parts


def peak_bytes(read: Read, refusals: tuple[type[Exception], ...], data: bytes) -> int:
    """Return the most memory that Python allocated at a time while an input was read."""
    tracemalloc.start()
    try:
        try_input(read, refusals, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def in_file(name: str, read: Callable[[Path], object]) -> Callable[[Path], Read]:
    """Return a `prepare` that writes each input into a file of this name and calls `read` with its path."""

    def prepare(folder: Path) -> Read:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)

        def call(data: bytes) -> object:
            file.write_bytes(data)
            return read(file)

        return call

    return prepare
