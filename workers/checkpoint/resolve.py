"""From the name of a model, a folder or a hub id, to a folder with config.json and safetensors."""

from __future__ import annotations

from pathlib import Path

from ...errors import UsageError
from .hub import DownloadProgress, fetch_model


def resolve_folder(model: str, revision: str = "", report: DownloadProgress = lambda done, total: None) -> Path:
    """Return the folder of a local checkpoint, or of a hub id's snapshot (files that are not cached are downloaded).

    Raises UsageError for an empty name, a file, or a name that is neither a folder nor a hub id; for hub ids also what
    `hub.fetch_model` raises.
    """
    return local_folder(model) or fetch_model(model, revision, report)


def local_folder(model: str) -> Path | None:
    """Return the folder of that name; None for a hub id. Raises UsageError for a name that can be neither."""
    if not model.strip():
        raise UsageError("no model given", "model", "Name a checkpoint folder or a hub id")
    path = _local_path(model)
    if path is not None and path.is_dir():
        return path.resolve()
    if path is not None and path.suffix == ".gguf":
        raise UsageError("is a GGUF file, which is not supported", str(path), "Give the original checkpoint's folder")
    if path is not None:
        raise UsageError("is a file, not a folder", str(path), f"Give its folder: {path.parent}")
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise UsageError("no such folder", model, "Give a checkpoint folder or a hub id (owner/name)")
    return None


def _local_path(model: str) -> Path | None:
    """Return the file or folder of that name, None if there is none."""
    try:
        path = Path(model).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot be looked up ({reason})", model, "Give a checkpoint folder or a hub id") from error
