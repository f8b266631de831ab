"""Reads the headers of safetensors files: names, types, shapes and byte ranges, never the weights.

The format: 8 bytes of header length (little endian), a JSON header, then the data that its offsets refer to.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from ...configs.decoding import UNDECODABLE
from ...errors import CheckpointError
from ...ipc.shared.named_errors import naming

HEADER_LIMIT_BYTES = 100_000_000
MAX_DIMENSIONS = 32
MAX_EXTENT = 2**48
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
SLOT_BYTES = DTYPE_BYTES | {"uint8": 1, "int8": 1, "int32": 4}
"""Bytes of the types of slot tensors: what is computed with, and parts of packed parameters."""
FLOAT8, FLOAT8_EXPONENT, BYTE, SIGNED_BYTE = "F8_E4M3", "F8_E8M0", "U8", "I8"
"""Stored types of quantised tensors and their scales, by safetensors' names."""
_CODE_BYTES = {FLOAT8: 1, FLOAT8_EXPONENT: 1, BYTE: 1, SIGNED_BYTE: 1, "I32": 4, "I64": 8}


class StoredTensor(msgspec.Struct, frozen=True):
    """One tensor in a file. `offset_bytes` counts from the start of the file."""

    name: str
    file: int
    dtype: str
    shape: list[int]
    offset_bytes: int
    count_bytes: int

    def read(self, file: Path) -> bytearray:
        """Return its bytes from `file`, whose header was checked. Raises CheckpointError if it was cut off since."""
        data = bytearray(self.count_bytes)
        with naming(file), file.open("rb") as stream:
            stream.seek(self.offset_bytes)
            read = stream.readinto(data)
        if read < self.count_bytes:
            raise CheckpointError(f"was cut off inside {self.name}", str(file), _REDOWNLOAD)
        return data


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def checkpoint_files(folder: Path, config: dict[str, Any] | None = None) -> list[Path]:
    """Return the safetensors files that the weights of a folder are read from, as `from_pretrained` chooses them.

    Here and below `config` is the folder's config.json where it was read already. Raises CheckpointError when there are
    no such files, or when one is missing.
    """
    main = folder / weights_entry(folder, config=config)
    files = [folder / name for name in weight_names(folder, config=config)]
    if not main.is_file():
        what = f"has no {main.name}" if _stated_entry(folder, config) else f"has no {SINGLE} and no {INDEX}"
        raise CheckpointError(what + _list_others(folder), str(folder), _REDOWNLOAD)
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"names the shard {file.name}, which is missing", str(main), _REDOWNLOAD)
    return files


def weights_entry(folder: Path, listed: Collection[str] = (), config: dict[str, Any] | None = None) -> str:
    """Return the name of the file that `from_pretrained` begins with: weights, or an index of shards.

    It is what config.json names (`transformers_weights`), else the whole file, else the index. Files that are `listed`
    count as being in the folder: a hub has them. Raises CheckpointError for a name that is neither.
    """
    if stated := _stated_entry(folder, config):
        return stated
    present = [name for name in (SINGLE, INDEX) if name in listed or (folder / name).is_file()]
    return (present or [SINGLE])[0]


def weight_names(folder: Path, listed: Collection[str] = (), config: dict[str, Any] | None = None) -> list[str]:
    """Return names of the files that hold the weights of a folder, present or not.

    Raises CheckpointError for an index that cannot be read.
    """
    entry = weights_entry(folder, listed, config)
    indexed = entry.endswith(_INDEX_SUFFIX) and (folder / entry).is_file()
    return sorted(set(_weight_map(folder / entry).values())) if indexed else [entry]


def ignored_weights(folder: Path, config: dict[str, Any] | None = None) -> str:
    """Return a sentence on other files of weights in the folder, which are not read; empty if there are none."""
    entry = weights_entry(folder, config=config)
    others = _all_weights(folder) - {entry, *weight_names(folder, config=config)}
    if not others:
        return ""
    indices_first = sorted(others, key=lambda name: (not name.endswith(".json"), name))
    named = ", ".join(indices_first[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return f"the weights are those of {entry}, as transformers chooses; not read: {named}"


INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"
_REDOWNLOAD = "Download the checkpoint again, in safetensors format"
_WEIGHTS = ("*.safetensors", "*" + _INDEX_SUFFIX, "pytorch_model*.bin", "pytorch_model.bin.index.json")
_ADAPTER = "adapter_model.safetensors"


def indexed_tensors(folder: Path, listed: Collection[str] = (), config: dict[str, Any] | None = None) -> list[str]:
    """Return names of all tensors of a folder whose weights have an index; empty if they have none.

    Raises CheckpointError for an index that cannot be read.
    """
    entry = weights_entry(folder, listed, config)
    return list(_weight_map(folder / entry)) if entry.endswith(_INDEX_SUFFIX) and (folder / entry).is_file() else []


def _stated_entry(folder: Path, config: dict[str, Any] | None) -> str:
    """Return the `transformers_weights` of config.json; empty if it names none, or cannot be read here."""
    file = folder / "config.json"
    stated = _read_entry(file) if config is None else config.get("transformers_weights")
    if not stated:
        return ""
    is_name = isinstance(stated, str) and stated.endswith((".safetensors", _INDEX_SUFFIX))
    if not is_name or Path(stated).name != stated:
        what = f"transformers_weights is {stated!r}, which names no safetensors file of the folder"
        raise CheckpointError(what, str(file), "Name a *.safetensors file, or leave it out")
    return stated


class _Stated(msgspec.Struct):
    transformers_weights: Any = None


def _read_entry(file: Path) -> Any:
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Stated).transformers_weights if file.is_file() else None
    except UNDECODABLE:  # the reader of the whole file reports what is wrong with it
        return None


def _all_weights(folder: Path) -> set[str]:
    return {file.name for pattern in _WEIGHTS for file in folder.glob(pattern)} - {_ADAPTER}


def _list_others(folder: Path) -> str:
    others = sorted(_all_weights(folder))
    return f"; it has {', '.join(others[:3])}" if others else ""


def _weight_map(index: Path) -> dict[str, str]:
    """Return tensor -> file, which is one of the folder or below it: an index leads nowhere else."""
    if index.stat().st_size > HEADER_LIMIT_BYTES:
        raise CheckpointError(f"is larger than {HEADER_LIMIT_BYTES:,} bytes", str(index), _REDOWNLOAD)
    try:
        table = msgspec.json.decode(index.read_bytes(), type=dict[str, msgspec.Raw])
        files = msgspec.json.decode(table["weight_map"], type=dict[str, str])
    except (*UNDECODABLE, KeyError) as error:
        raise CheckpointError(f"is not a readable index ({error})", str(index), _REDOWNLOAD) from error
    for file in set(files.values()):
        if file.startswith("/") or ".." in file.split("/") or "\0" in file:
            raise CheckpointError(f"names {file[:80]!r}, which is no file of its folder", str(index), _REDOWNLOAD)
    return files


def read_headers(files: list[Path]) -> dict[str, StoredTensor]:
    """Return all tensors of all files by name; raises CheckpointError for a truncated or garbled file."""
    tensors: dict[str, StoredTensor] = {}
    for number, file in enumerate(files):
        for name, entry, start in _read_header(file):
            low, high = entry.data_offsets
            dtype = DTYPES.get(entry.dtype, entry.dtype)
            tensors[name] = StoredTensor(name, number, dtype, entry.shape, start + low, high - low)
    return tensors


def first_dtype(tensors: dict[str, StoredTensor]) -> str:
    """Return the type of the first float weight (float32 if there is none), for a config.json that names no type."""
    weights = (tensor for tensor in tensors.values() if not tensor.name.endswith("_scale_inv"))
    return next((tensor.dtype for tensor in weights if tensor.dtype in DTYPE_BYTES), "float32")


def _read_header(file: Path) -> list[tuple[str, _Entry, int]]:
    size_bytes = os.path.getsize(file)
    with naming(file), file.open("rb") as stream:
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
    except UNDECODABLE as error:
        raise CheckpointError(f"has a garbled header ({error})", str(file), _REDOWNLOAD) from error


def _check_ranges(entries: dict[str, _Entry], start: int, size_bytes: int, file: Path) -> None:
    for name, entry in entries.items():
        low, high = entry.data_offsets
        if start + high > size_bytes or low > high or low < 0:
            what = f"is cut off: tensor {name} ends at byte {start + high}, the file has {size_bytes}"
            raise CheckpointError(what, str(file), _REDOWNLOAD)
        _check_length(name, entry, file)


def _check_length(name: str, entry: _Entry, file: Path) -> None:
    if len(entry.shape) > MAX_DIMENSIONS or not all(0 <= extent <= MAX_EXTENT for extent in entry.shape):
        what = f"tensor {name} has a shape that no tensor has ({len(entry.shape)} dimensions)"
        raise CheckpointError(what, str(file), _REDOWNLOAD)
    expected = _CODE_BYTES.get(entry.dtype) or DTYPE_BYTES.get(DTYPES.get(entry.dtype, ""))
    if expected is None:
        return
    for extent in entry.shape:
        expected *= extent
    if entry.data_offsets[1] - entry.data_offsets[0] != expected:
        what = f"tensor {name} does not have the length that its shape {entry.shape} asks for"
        raise CheckpointError(what, str(file), _REDOWNLOAD)
