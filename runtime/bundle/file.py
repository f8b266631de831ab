"""The file of a bundle: a zip whose members are JSON and text, so that it can be looked at without ExpertFlow."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from ...errors import UsageError
from ...ipc.messages import CacheHeat
from ..service.whole_files import write_whole_file
from .contents import FORMAT, MEMBERS, PLAIN, Bundle

MAX_MEMBER_BYTES = 1 << 30
MAX_POINT_S = 1e9
"""Longest time, in seconds, that a point of a history covers: an engine that was stopped for years."""
_REMEDY = "Give a file that `expertflow bundle` wrote"
BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, ValueError, OverflowError, RuntimeError,
    msgspec.MsgspecError,
)  # fmt: skip
"""Errors of a file that is cut, damaged, encrypted (RuntimeError) or made by hand."""


def is_bundle(path: Path) -> bool:
    """Return whether a file is a zip, as bundles are."""
    return path.is_file() and zipfile.is_zipfile(path)


def write_bundle(path: Path, bundle: Bundle) -> None:
    """Write a bundle at once, readable by its owner alone. Raises UsageError if it cannot be written."""
    content = io.BytesIO()  # a zip that is being written cannot be closed on a full disk
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for field, member in MEMBERS.items():
            archive.writestr(member, _encode(field, getattr(bundle, field)))
    write_whole_file(path, content.getbuffer())


def read_bundle(path: Path) -> Bundle:
    """Read a bundle. Raises UsageError if the file cannot be read, is no bundle, or is of a newer version."""
    hints = get_type_hints(Bundle)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_format(archive, path)
            bundle = Bundle(**{field: _decode(field, hints[field], archive, path) for field in MEMBERS})
        _check_contents(bundle)
        return bundle
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", str(path), "Give another file") from error
    except BROKEN as error:
        raise UsageError(f"is no bundle ({error})", str(path), _REMEDY) from error


def _check_format(archive: zipfile.ZipFile, path: Path) -> None:
    found = msgspec.json.decode(archive.read(MEMBERS["manifest"]), type=dict[str, Any]).get("format")
    if not isinstance(found, int) or found > FORMAT:
        remedy = "Read it with the version of ExpertFlow that wrote it, or a newer one"
        raise UsageError(f"has the format {found}, this version reads {FORMAT}", str(path), remedy)


def _check_contents(bundle: Bundle) -> None:
    """Raise ValueError for values that no engine writes, on which a view of the bundle would fail."""
    datetime.fromisoformat(bundle.manifest.written).timestamp()
    if any(not 0 < point.seconds < MAX_POINT_S for points in bundle.history.values() for point in points):
        raise ValueError("a point of its history covers no time")
    for activity in bundle.activity.values():
        heat = activity.heat
        if heat is not None and not _is_map(heat):
            raise ValueError(f"its experts are no map of {heat.layers} layers with {heat.experts} experts")


def _is_map(heat: CacheHeat) -> bool:
    size = heat.layers * heat.experts
    return min(heat.layers, heat.experts) > 0 and len(heat.residence) == size and len(heat.use) in (0, size)


def _encode(field: str, value: Any) -> bytes:
    if field in PLAIN:
        return value.encode() if isinstance(value, str) else value
    return msgspec.json.format(msgspec.json.encode(value)) if field != "history" else msgspec.json.encode(value)


def _decode(field: str, cls: Any, archive: zipfile.ZipFile, path: Path) -> Any:
    if archive.getinfo(MEMBERS[field]).file_size > MAX_MEMBER_BYTES:
        raise UsageError(f"has a {MEMBERS[field]} beyond {MAX_MEMBER_BYTES >> 20} MiB", str(path), _REMEDY)
    content = archive.read(MEMBERS[field])
    if field in PLAIN:
        return content.decode() if cls is str else content
    return msgspec.json.decode(content, type=cls)
