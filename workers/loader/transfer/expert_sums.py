"""The checksums of all experts of a checkpoint: made once by reading every expert, kept in the user's cache."""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from ....configs.user_cache import cache_folder
from ...checkpoint.survey import Survey
from .files import BounceBuffer
from .read_checks import Chunk, Recorder, Sums, add_sums

FORMAT = 2
"""Rises when checksums are made in another way."""
WHAT = "making checksums of the experts"

ReportProgress = Callable[[str, int, int], None]
"""Takes what is done, how many experts are done, and of how many."""


class RecordedSource(Protocol):
    """Source of chunks whose reads a recorder notes."""

    def chunks(self, memory: np.ndarray, base_bytes: int, layer: int, expert: int) -> list[Chunk]:
        """Return the chunks that read one expert."""
        ...


class ExpertSums(msgspec.Struct, frozen=True):
    """Checksums by layer, then expert."""

    sums: list[Sums]

    def of(self, number: int) -> Sums:
        """Return the checksums of an expert: `number` counts by layer, then expert."""
        return self.sums[number]


class _Kept(msgspec.Struct, frozen=True):
    """Content of a file in the cache; `digest` is of `sums`."""

    digest: bytes
    sums: bytes


def sums_file(survey: Survey) -> Path | None:
    """Return where the checksums of these files are kept; None for a user without a home.

    The files are known by path, size, time and inode. What else decides which bytes are an expert's is in the name.
    """
    pieces = msgspec.msgpack.encode((FORMAT, survey.pieces, survey.files, survey.layers, survey.experts))
    text = msgspec.msgpack.encode((sorted(survey.stamps.items()), hashlib.sha256(pieces + survey.places).digest()))
    try:
        return cache_folder() / "checksums" / hashlib.sha256(text).hexdigest()[:24]
    except RuntimeError:
        return None


def load_or_make_sums(
    survey: Survey, source: RecordedSource, recorder: Recorder, readers: int, progress: ReportProgress
) -> ExpertSums:
    """Return the checksums of a surveyed checkpoint: those that were kept, else new ones, which are kept.

    Raises the errors of reads.
    """
    file = sums_file(survey)
    kept = None if file is None else _read(file, survey.expert_count)
    if kept is not None:
        return kept
    made = make_sums(survey, source, recorder, readers, progress)
    if file is not None:
        _keep(file, made)
    return made


def make_sums(
    survey: Survey, source: RecordedSource, recorder: Recorder, readers: int, progress: ReportProgress
) -> ExpertSums:
    """Read every expert and return the checksums; `recorder` notes the reads of `source`. Raises OSError."""
    found: list[Sums] = []
    pool = ThreadPoolExecutor(readers, "checksums")
    rooms = [_Room(survey.stride_bytes) for _ in range(readers)]

    def read(number: int, room: _Room) -> Sums:
        total = Sums()
        for chunk in source.chunks(room.memory, 0, *divmod(number, survey.experts)):
            with recorder.recording() as sums:
                chunk(room.bounce)
            add_sums(total, sums)
        return total

    with pool:
        for start in range(0, survey.expert_count, readers):
            numbers = range(start, min(start + readers, survey.expert_count))
            found += pool.map(read, numbers, rooms)
            if start // readers % 32 == 0:
                progress(WHAT, len(found), survey.expert_count)
    progress(WHAT, len(found), survey.expert_count)
    return ExpertSums(found)


class _Room:
    """Memory of one reader: a slot, and a bounce buffer."""

    def __init__(self, stride_bytes: int) -> None:
        self.memory = np.frombuffer(mmap.mmap(-1, stride_bytes), dtype=np.uint8)
        self.bounce = BounceBuffer()


def _read(file: Path, experts: int) -> ExpertSums | None:
    """Return the checksums of a file; None if there are none, or if the file itself is damaged."""
    try:
        kept = msgspec.msgpack.decode(file.read_bytes(), type=_Kept)
        if hashlib.sha256(kept.sums).digest() != kept.digest:
            return None
        sums = msgspec.msgpack.decode(kept.sums, type=list[Sums])
    except (OSError, msgspec.DecodeError):
        return None
    return ExpertSums(sums) if len(sums) == experts else None


def _keep(file: Path, made: ExpertSums) -> None:
    """Write the checksums whole or not at all; without room for them, the next start makes them again."""
    encoded = msgspec.msgpack.encode(made.sums)
    kept = msgspec.msgpack.encode(_Kept(hashlib.sha256(encoded).digest(), encoded))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(kept)
            os.replace(name, file)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        words = "checksums cannot be kept in %s (%s): the next start makes them again"
        logging.getLogger(__name__).warning(words, file.parent, error.strerror)
