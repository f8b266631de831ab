"""Views of the engines of a bundle, as `top` and the page show them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from msgspec import structs

from ...errors import UsageError
from ..monitor.engine_views import EngineView, EngineViews
from .contents import Bundle
from .file import BROKEN, read_bundle

MAX_UPLOAD_BYTES = 128 << 20
"""Size of all members, unpacked, of a bundle that somebody sends to a server."""


def bundle_views(bundle: Bundle) -> list[EngineView]:
    """Return the view of each engine at the moment at which the bundle was written."""
    views = EngineViews()
    views.update(bundle.snapshot, bundle.history, bundle.activity)
    settled = {engine: structs.replace(activity, spans=[]) for engine, activity in bundle.activity.items()}
    return views.update(bundle.snapshot, {}, settled)


def read_small_bundle(path: Path) -> Bundle:
    """Read a bundle that a stranger may have made: one that unpacks to too much is refused. Raises UsageError."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (OSError, *BROKEN) as error:
        raise UsageError(f"is no bundle ({error})", "file", "Give a file that `expertflow bundle` wrote") from error
    if size > MAX_UPLOAD_BYTES:
        what = f"unpacks to {size:,} bytes, the page takes {MAX_UPLOAD_BYTES:,}"
        raise UsageError(what, "file", "Open it in a terminal: expertflow top --from FILE")
    return read_bundle(path)
