"""Reads the header of a GGUF file: metadata, and names, types, shapes and byte ranges of tensors, never the weights.

The format, little endian: magic, version, numbers of tensors and metadata entries, the entries, the table of tensors,
and, from the next multiple of the alignment on, their data. Nothing in a header is trusted: every length is compared
with the file before it is read. Long lists of texts (a vocabulary) are passed over.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from ....errors import CheckpointError
from ....ipc.shared.named_errors import naming
from .block_types import OTHERS, TYPES, BlockType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ENTRIES = 1 << 20
"""Tensors or metadata entries of one file, and values of a list that is kept."""
MAX_DIMENSIONS = 4
_REDOWNLOAD = "Download the file again"
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9


class StoredBlocks(msgspec.Struct, frozen=True):
    """One tensor in a file. `offset_bytes` counts from the start of the file; `shape`: rows first, as torch has it."""

    name: str
    type: BlockType
    shape: list[int]
    offset_bytes: int
    count_bytes: int


class Omitted(msgspec.Struct, frozen=True):
    """A list of texts that was passed over."""

    count: int


class Container(msgspec.Struct, frozen=True):
    """Header of one GGUF file: scalars, texts and lists of numbers by key, and its tensors in the order of the file."""

    path: Path
    metadata: dict[str, Any]
    tensors: list[StoredBlocks]

    @property
    def architecture(self) -> str:
        """Return the name of the model's architecture; empty if the file states none (shards but the first)."""
        return str(self.metadata.get("general.architecture", ""))

    def number(self, key: str) -> int | None:
        """Return a whole number of the metadata, None if there is none. Raises CheckpointError for another value."""
        value = self.metadata.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise CheckpointError(f"states {key} = {str(value)[:40]}, not a number", str(self.path), _REDOWNLOAD)
        return value


def read_container(path: Path) -> Container:
    """Return the header of a GGUF file.

    Raises CheckpointError for a file that is none, is cut off (by the name of the first tensor that is not whole), or
    holds a tensor of a type that is not read; OSError if it cannot be read.
    """
    with naming(path), path.open("rb", buffering=1 << 20) as stream:
        reader = _Reader(stream, path, os.fstat(stream.fileno()).st_size)
        tensor_count, entry_count = reader.opening()
        metadata = dict(reader.entry() for _ in range(entry_count))
        entries = [reader.tensor() for _ in range(tensor_count)]
        alignment = reader.alignment(metadata)
        start = -(-stream.tell() // alignment) * alignment
    if len({entry.name for entry in entries}) < len(entries):
        raise CheckpointError("names a tensor twice", str(path), _REDOWNLOAD)
    return Container(path, metadata, [_placed(entry, start, alignment, reader) for entry in entries])


class _Entry(msgspec.Struct, frozen=True):
    name: str
    type_number: int
    shape: list[int]
    offset_bytes: int


class _Reader:
    """Reads values of a header one after the other; none goes past the end of the file."""

    def __init__(self, stream: BinaryIO, path: Path, size_bytes: int) -> None:
        self.path, self.size_bytes = path, size_bytes
        self._stream = stream

    def opening(self) -> tuple[int, int]:
        """Return the numbers of tensors and of metadata entries."""
        if self._stream.read(4) != MAGIC:
            raise self._error("is not a GGUF file: it does not begin with GGUF")
        (version,) = self._unpack("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            stated = f"{swapped}, big-endian" if swapped in VERSIONS else str(version)
            remedy = f"Convert the model anew: versions {' and '.join(map(str, VERSIONS))}, little-endian, are read"
            raise CheckpointError(f"is GGUF of version {stated}, which is not supported", str(self.path), remedy)
        tensors, entries = self._unpack("QQ")
        if max(tensors, entries) > MAX_ENTRIES:
            raise self._error(f"states {tensors:,} tensors and {entries:,} entries, which cannot be")
        return tensors, entries

    def entry(self) -> tuple[str, Any]:
        """Return key and value of one metadata entry."""
        key = self._text()
        (kind,) = self._unpack("I")
        return key, self._value(kind, key)

    def tensor(self) -> _Entry:
        """Return the next line of the table of tensors."""
        name = self._text()
        (dimensions,) = self._unpack("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._error(f"states {dimensions} dimensions for tensor {name[:80]}")
        shape = list(reversed(self._unpack(f"{dimensions}Q")))
        kind, offset = self._unpack("IQ")
        return _Entry(name, kind, shape, offset)

    def alignment(self, metadata: dict[str, Any]) -> int:
        """Return the bytes to whose multiples data begin."""
        stated = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(stated, int) or stated < 1 or stated & (stated - 1) or stated > self.size_bytes:
            raise self._error(f"states general.alignment = {str(stated)[:40]}, not a power of two")
        return stated

    def _value(self, kind: int, key: str) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind == _LIST:
            return self._list(key)
        if kind not in _FORMATS:
            raise self._error(f"has a value of unknown type {kind} at {key[:80]}")
        return self._unpack(_FORMATS[kind])[0]

    def _list(self, key: str) -> Any:
        kind, count = self._unpack("IQ")
        if kind == _TEXT:
            return self._pass_over_texts(self._bounded(count, 8))
        if kind not in _FORMATS:
            raise self._error(f"has a list of unknown type {kind} at {key[:80]}")
        width = struct.calcsize("<" + _FORMATS[kind])
        if self._bounded(count, width) > MAX_ENTRIES:
            self._pass_over(count * width)
            return Omitted(count)
        return list(self._unpack(f"{count}{_FORMATS[kind]}"))

    def _text(self) -> str:
        raw = self._take(self._unpack("Q")[0])
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self._error(f"has a garbled header ({error})") from error

    def _unpack(self, codes: str) -> tuple[Any, ...]:
        return struct.unpack("<" + codes, self._take(struct.calcsize("<" + codes)))

    def _bounded(self, count: int, width: int) -> int:
        """Return a number of values of `width` bytes or more each. Raises if the file is too short for them."""
        if count * width > self.size_bytes - self._stream.tell():
            raise self._error("is cut off in its header")
        return count

    def _take(self, count: int) -> bytes:
        raw = self._stream.read(self._bounded(count, 1))
        if len(raw) < count:
            raise self._error("is cut off in its header")
        return raw

    def _pass_over_texts(self, count: int) -> Omitted:
        """Pass over texts, each after its length: half a million in a vocabulary, so the loop is short."""
        left, read = self.size_bytes - self._stream.tell(), self._stream.read
        for _ in range(count):
            length = int.from_bytes(read(8), "little")
            left -= 8 + length
            if left < 0:
                raise self._error("is cut off in its header")
            read(length)
        return Omitted(count)

    def _pass_over(self, count: int) -> None:
        self._stream.seek(self._bounded(count, 1), os.SEEK_CUR)

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(what, str(self.path), _REDOWNLOAD)


def _placed(entry: _Entry, start: int, alignment: int, reader: _Reader) -> StoredBlocks:
    """Return a tensor whose data begin at byte `start` plus its offset. Raises CheckpointError if they cannot be."""
    own = _block_type(entry, reader.path)
    values = 1
    for extent in entry.shape:
        values *= extent
    offset, count = start + entry.offset_bytes, own.count_bytes(values)
    if entry.shape[-1] % own.values:
        what = f"tensor {entry.name} has rows of {entry.shape[-1]} values, no whole number of blocks of {own.name}"
        raise CheckpointError(what, str(reader.path), _REDOWNLOAD)
    if entry.offset_bytes % alignment:
        what = f"tensor {entry.name} begins at byte {offset}, not at a multiple of {alignment}"
        raise CheckpointError(what, str(reader.path), _REDOWNLOAD)
    if offset + count > reader.size_bytes:
        what = f"is cut off: tensor {entry.name} ends at byte {offset + count}, the file has {reader.size_bytes}"
        raise CheckpointError(what, str(reader.path), _REDOWNLOAD)
    return StoredBlocks(entry.name, own, entry.shape, offset, count)


def _block_type(entry: _Entry, path: Path) -> BlockType:
    if entry.type_number in TYPES:
        return TYPES[entry.type_number]
    named = OTHERS.get(entry.type_number, f"the unknown type {entry.type_number}")
    remedy = f"Choose a file of another type, for example Q4_K_M or Q8_0; read are {', '.join(_names())}"
    raise CheckpointError(f"tensor {entry.name} is stored as {named}, which is not supported", str(path), remedy)


def _names() -> list[str]:
    return sorted(own.name for own in TYPES.values())
