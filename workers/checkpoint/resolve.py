"""From the name of a model (a folder, a hub id, a GGUF file) to a folder with its configuration."""

from __future__ import annotations

from pathlib import Path

from ...errors import UsageError
from .gguf.description import describe
from .gguf.model_files import SUFFIX, only_model
from .hub import DownloadProgress, fetch_model

BUILT_IN = "examples/model"
"""Name of the built-in model, as the documentation writes it."""


def resolve_folder(model: str, revision: str = "", report: DownloadProgress = lambda done, total: None) -> Path:
    """Return the folder of a local checkpoint, or of a hub id's snapshot (files that are not cached are downloaded).

    Raises UsageError for an empty name, a file, or a name that is neither a folder nor a hub id; for hub ids also what
    `hub.fetch_model` raises.
    """
    return local_folder(model) or fetch_model(model, revision, report)


def local_folder(model: str) -> Path | None:
    """Return the folder of that name; None for a hub id. Raises UsageError for a name that can be neither.

    A GGUF file, and a folder that has one and no safetensors, is described in a folder of its own, which is returned:
    CheckpointError if that fails. `BUILT_IN` names the model that the package carries, in any folder that has none of
    this name.
    """
    if not model.strip():
        raise UsageError("no model given", "model", "Name a checkpoint folder or a hub id")
    path = _local_path(model) or (_built_in() if model.rstrip("/") == BUILT_IN else None)
    if path is not None and path.is_dir():
        file = None if any(path.glob("*.safetensors")) else only_model(path)
        return path.resolve() if file is None else describe(file)
    if path is not None and path.suffix == SUFFIX:
        return describe(path)
    if path is not None:
        raise UsageError("is a file, not a folder", str(path), f"Give its folder: {path.parent}")
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise UsageError("no such folder", model, "Give a checkpoint folder or a hub id (owner/name)")
    return None


def _built_in() -> Path | None:
    """Return the folder of the model in the package; None if it was installed without."""
    folder = Path(__file__).parents[2] / BUILT_IN
    return folder if folder.is_dir() else None


def _local_path(model: str) -> Path | None:
    """Return the file or folder of that name, None if there is none."""
    try:
        path = Path(model).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot be looked up ({reason})", model, "Give a checkpoint folder or a hub id") from error
