"""Reads the headers of safetensors files: names, types, shapes and byte ranges, never the weights.

The format: 8 bytes of header length (little endian), a JSON header, then the data that its offsets refer to.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from ...errors import CheckpointError

HEADER_LIMIT_BYTES = 100_000_000
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
FLOAT8, FLOAT8_EXPONENT, BYTE, SIGNED_BYTE = "F8_E4M3", "F8_E8M0", "U8", "I8"
"""As safetensors names them: what quantised tensors and their scales are stored in."""


class StoredTensor(msgspec.Struct, frozen=True):
    """One tensor in a file. `offset_bytes` counts from the start of the file."""

    name: str
    file: int
    dtype: str
    shape: list[int]
    offset_bytes: int
    count_bytes: int


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, by its index if it has one.

    Raises CheckpointError when there are none, or when the index names a file that is not there.
    """
    index = folder / INDEX
    files = [folder / name for name in weight_names(folder)]
    if not index.is_file() and not files[0].is_file():
        raise CheckpointError(f"has no {SINGLE} and no {INDEX}", str(folder), _REDOWNLOAD)
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"names the shard {file.name}, which is missing", str(index), _REDOWNLOAD)
    return files


def weight_names(folder: Path) -> list[str]:
    """Names of the files that hold the weights of a folder, whether they are there or not.

    Raises CheckpointError for an index that cannot be read.
    """
    index = folder / INDEX
    return _indexed_names(index) if index.is_file() else [SINGLE]


INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_REDOWNLOAD = "Download the checkpoint again, in safetensors format"


def indexed_tensors(folder: Path) -> list[str]:
    """Names of all tensors of a folder that has an index. Raises CheckpointError for one that cannot be read."""
    return list(_weight_map(folder / INDEX))


def _indexed_names(index: Path) -> list[str]:
    return sorted(set(_weight_map(index).values()))


def _weight_map(index: Path) -> dict[str, str]:
    try:
        table = msgspec.json.decode(index.read_bytes(), type=dict[str, msgspec.Raw])
        return msgspec.json.decode(table["weight_map"], type=dict[str, str])
    except (msgspec.DecodeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"is not a readable index ({error})", str(index), _REDOWNLOAD) from error


def read_headers(files: list[Path]) -> dict[str, StoredTensor]:
    """All tensors of all files by name; raises CheckpointError for a truncated or garbled file."""
    tensors: dict[str, StoredTensor] = {}
    for number, file in enumerate(files):
        for name, entry, start in _read_header(file):
            low, high = entry.data_offsets
            dtype = DTYPES.get(entry.dtype, entry.dtype)
            tensors[name] = StoredTensor(name, number, dtype, entry.shape, start + low, high - low)
    return tensors


def first_dtype(tensors: dict[str, StoredTensor]) -> str:
    """What the first float weight is stored in (float32 if there is none): the type where config.json says nothing."""
    weights = (tensor for tensor in tensors.values() if not tensor.name.endswith("_scale_inv"))
    return next((tensor.dtype for tensor in weights if tensor.dtype in DTYPE_BYTES), "float32")


def _read_header(file: Path) -> list[tuple[str, _Entry, int]]:
    size_bytes = os.path.getsize(file)
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size_bytes < 8 or length > min(HEADER_LIMIT_BYTES, size_bytes - 8):
            raise CheckpointError("is not a safetensors file, or is cut off in its header", str(file), _REDOWNLOAD)
        raw = stream.read(length)
    entries = _decode_header(raw, file)
    _check_ranges(entries, 8 + length, size_bytes, file)
    return [(name, entry, 8 + length) for name, entry in entries.items()]


def _decode_header(raw: bytes, file: Path) -> dict[str, _Entry]:
    try:
        table = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        table.pop("__metadata__", None)
        return {name: msgspec.json.decode(value, type=_Entry) for name, value in table.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"has a garbled header ({error})", str(file), _REDOWNLOAD) from error


def _check_ranges(entries: dict[str, _Entry], start: int, size_bytes: int, file: Path) -> None:
    for name, entry in entries.items():
        low, high = entry.data_offsets
        if start + high > size_bytes or low > high or low < 0:
            what = f"is cut off: tensor {name} ends at byte {start + high}, the file has {size_bytes}"
            raise CheckpointError(what, str(file), _REDOWNLOAD)
        _check_length(name, entry, file)


def _check_length(name: str, entry: _Entry, file: Path) -> None:
    bytewise = entry.dtype in (FLOAT8, FLOAT8_EXPONENT, BYTE, SIGNED_BYTE)
    expected = 1 if bytewise else DTYPE_BYTES.get(DTYPES.get(entry.dtype, ""))
    if expected is None:
        return
    for extent in entry.shape:
        expected *= extent
    if entry.data_offsets[1] - entry.data_offsets[0] != expected:
        what = f"tensor {name} has not the length its shape {entry.shape} asks for"
        raise CheckpointError(what, str(file), _REDOWNLOAD)
